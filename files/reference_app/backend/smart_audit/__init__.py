"""Smart Audit: documents in, nearest passages out.

One package, two processes: ``smart-audit serve`` answers HTTP on a unix socket, ``smart-audit worker`` splits, embeds and
stores what was uploaded. Postgres holds the truth; Valkey only carries messages; the bucket holds the files.
"""

__version__ = "1.0.0"
