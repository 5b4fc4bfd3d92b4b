"""A person's way through the application, in a real headless Chromium, with a picture of its end.

`python -m tools.browser JSON`: JSON is what `make -s demo-info` prints. The browser trusts the demo's certificate authority and nothing
else is waived: a wrong certificate, a blocked script or a broken page fails.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tools.shell import CACHE, Failure, fail, run, step

PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver", "certutil": "libnss3-tools"}
PATIENCE_SECONDS = 30
PICTURE = CACHE / "demo" / "browser.png"
DOCUMENT = """Audit report 2026-14: accounts payable

Finding 1. Twelve payments above 10,000 EUR were released with one signature. The policy asks for two.

Finding 2. The supplier Nordwind Logistics was paid twice for invoice 4711, on 3 and on 17 March. The duplicate was not noticed, because the
invoice number was typed with a blank in front of it.

Finding 3. Access rights of three people who had left the company were still active at the end of the quarter.
"""
QUESTION = "Which supplier was paid twice for the same invoice?"
EXPECTED = "Nordwind Logistics"
# Nothing but the application is asked: the browser's own services are out of reach, and would only fill the log.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1000",
)  # fmt: skip


def install() -> None:
    """Install the browser from the distribution where it is missing."""
    missing = sorted(package for program, package in PACKAGES.items() if not shutil.which(program))
    if missing:
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        with step(f"Install {', '.join(missing)}"):
            run(["apt-get", "update", "-qq"], root=True, env=quiet)
            run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], root=True, env=quiet)


def _trust(home: Path, ca_file: str) -> None:
    """Make a home whose browser trusts the demo's authority."""
    store = home / ".pki" / "nssdb"
    store.mkdir(parents=True)
    run(["certutil", "-d", f"sql:{store}", "-N", "--empty-password"])
    run(["certutil", "-d", f"sql:{store}", "-A", "-t", "C,,", "-n", "holdfast", "-i", ca_file])


def walk(info: dict[str, Any], picture: Path = PICTURE) -> None:
    """Log in, upload a document, ask a question, see its passage, take a picture, and log out.

    Args:
        info: url, ca_file, username and password of the application.
        picture: file for the picture.

    Raises:
        Failure: a step did not end within PATIENCE_SECONDS, or the browser reported an error.
    """
    install()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _trust(home, info["ca_file"])
        document = home / "audit-report-2026-14.txt"
        document.write_text(DOCUMENT)
        options = Options()
        options.binary_location = shutil.which("chromium") or "chromium"
        for flag in (*FLAGS, f"--user-data-dir={home / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # The proxy's variables would send a request for localhost elsewhere.
        environment = {**os.environ, "HOME": folder, "no_proxy": "localhost"}
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"), env=environment))
        try:
            _walk(driver, info, document, picture)
        finally:
            driver.quit()


def _walk(driver: webdriver.Chrome, info: dict[str, Any], document: Path, picture: Path) -> None:
    def find(name: str) -> Any:
        def visible(browser: webdriver.Chrome) -> Any:
            element = browser.find_element(By.ID, name)
            return element if element.is_displayed() and element.is_enabled() else None

        return WebDriverWait(driver, PATIENCE_SECONDS, ignored_exceptions=[Exception]).until(visible, f"#{name} did not show")

    def text_of(name: str, wanted: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted.lower() not in driver.find_element(By.ID, name).text.lower():
            if time.monotonic() > deadline:
                driver.save_screenshot(str(picture))
                said = "; ".join(entry["message"] for entry in driver.get_log("browser"))
                raise Failure(f"#{name} did not show '{wanted}'; see {picture}. The browser said: {said or 'nothing'}")
            time.sleep(0.2)

    driver.get(info["url"])
    find("username").send_keys(info["username"])
    find("password").send_keys(info["password"])
    find("login-button").click()
    find("upload-button")
    driver.find_element(By.ID, "file").send_keys(str(document))
    find("upload-button").click()
    text_of("documents", document.name)
    text_of("documents", "done")
    find("question").send_keys(QUESTION)
    find("ask-button").click()
    text_of("results", EXPECTED)
    picture.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(picture))
    severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE" and " 401 " not in entry["message"]]
    if severe:
        raise Failure("The browser reported: " + "; ".join(severe))


if __name__ == "__main__":
    try:
        walk(json.loads(sys.argv[1]))
    except Failure as failure:
        fail(str(failure))
