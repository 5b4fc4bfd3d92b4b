"""Alembic's environment and the migrations; part of the package, so that the image can migrate by itself."""
