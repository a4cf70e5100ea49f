"""The pages in a real browser: they open, nothing fails, what is touched changes what is shown."""

import shlex
import threading

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from typer.testing import CliRunner

from lighthubert_hf import LightHubertModel
from lighthubert_hf.cli import app
from lighthubert_hf.explore import write_page
from lighthubert_hf.explore.serving import ExploreServer
from lighthubert_hf.hub.folder import save_model_folder


def text(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector).text


def no_errors(browser):
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture
def opened(browser, searched, shown_supernet, tmp_path):
    """The page of the search from disk; its commands extract from a real folder."""
    folder = save_model_folder(shown_supernet, tmp_path / "my supernet")
    page = write_page(searched, tmp_path / "page.html", supernet=str(folder))
    browser.get(page.as_uri())
    return browser


def test_a_search(opened, tmp_path, monkeypatch):
    assert text(opened, "h1").endswith("my supernet")
    before = text(opened, "#within")
    shown = len(opened.find_elements(By.CSS_SELECTOR, "#front tbody tr"))
    assert shown > 2
    # A slider by keyboard takes subnets away
    slider = opened.find_element(By.ID, "limit-macs@10s")
    slider.send_keys(Keys.HOME, *[Keys.PAGE_UP] * 3)
    after = text(opened, "#within")
    assert after != before and "within the limits" in after
    assert len(opened.find_elements(By.CSS_SELECTOR, "#front tbody tr")) < shown
    slider.send_keys(Keys.END)
    assert len(opened.find_elements(By.CSS_SELECTOR, "#front tbody tr")) >= shown
    # Two subnets beside each other and the teacher, one from the table, one with the arrows of the plot
    opened.find_element(By.CSS_SELECTOR, "#front tbody tr").send_keys(Keys.ENTER)
    opened.find_element(By.ID, "plot").send_keys("b", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    heads = [cell.text for cell in opened.find_elements(By.CSS_SELECTOR, "#compared thead th")]
    assert [head.partition(":")[0] for head in heads] == ["A", "B", "teacher"]
    assert heads[0][3:] != heads[1][3:]
    assert len(opened.find_elements(By.CSS_SELECTOR, ".drawings svg")) == 3
    assert "%" in text(opened, "#compared tbody")
    # The command runs
    words = shlex.split(text(opened, ".command code"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    model = LightHubertModel.from_pretrained(tmp_path / words[3])
    assert str(model.active_subnet) in text(opened, "#compared tbody")
    no_errors(opened)


def test_dark_and_small(opened):
    """No part is wider than a phone; the colours follow the system's."""
    light = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    try:
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        fits = "return document.documentElement.scrollWidth <= 390"  # plots follow a moment later
        WebDriverWait(opened, 5).until(lambda page: page.execute_script(fits))
        assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") != light
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    no_errors(opened)


def test_a_run(browser, trained):
    with ExploreServer(trained) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        browser.get(server.address)
        assert text(browser, "#facts") == "step 20 · 0.05 h of audio · 1 step skipped"
        titles = [card.text for card in browser.find_elements(By.CSS_SELECTOR, "section h2")]
        assert titles[:2] == ["Training loss", "Validation loss of subnets"]
        assert "smallest" in text(browser, "#plot-validation")
        server.shutdown()
    no_errors(browser)
