"""The demo's end. It takes the registry away that the scenarios use, so `make test` runs it after all of them."""

from __future__ import annotations

import json
from pathlib import Path

from tools import bucket, demo, engine
from tools.shell import ROOT, VENV_BIN, run


def test_down() -> None:
    """`make demo-down` leaves no container, volume, image, network or secret of the demo behind, though its engine was stopped."""
    run(["docker", "start", bucket.name_of(demo.NAME), demo.NAME])  # its other tests have stopped it
    authority = Path(json.loads(run(["make", "--silent", "demo-info"]).stdout)["ca_file"])
    assert authority.exists()
    engine.stop()  # as a machine's reboot does; one that was there before the demo stays
    run(["make", "--silent", "demo-down"], timeout_seconds=300)
    assert not (ROOT / "inventories" / "demo" / "group_vars" / "all" / "vault.yml").exists()
    assert not authority.exists()
    assert VENV_BIN.exists()
    engine.start()  # which was ended with the demo, where it was started for it
    names = run(["docker", "ps", "--all", "--format", "{{.Names}}"]).stdout.split()
    assert not {"holdfast-demo", "holdfast-demo-bucket", "holdfast-registry"} & set(names)
    images = run(["docker", "image", "ls", "--format", "{{.Repository}}"]).stdout
    assert "/smart-audit/" not in images and "holdfast/registry" not in images
    engine.stop()
