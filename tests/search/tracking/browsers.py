"""Pages in a real browser, for the tests of MLflow's UI."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM, DRIVER = "chromium", "chromedriver"  # Debian's chromium and chromium-driver
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU: Plotly draws with it
    "--window-size=2400,1400",  # the table draws the columns that fit
)  # fmt: skip


@contextmanager
def chromium(profile: Path):
    """A headless browser under Selenium with a new profile; skips the test, with its reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which(CHROMIUM), shutil.which(DRIVER)
    if not binary or not driver:
        pytest.skip(f"needs {CHROMIUM} and {DRIVER}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()
