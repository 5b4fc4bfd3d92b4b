"""Allow ``python -m smart_audit``."""

from smart_audit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
