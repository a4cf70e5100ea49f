"""A search's report and a run's log to look at, and a real browser."""

import json
import shutil

import pytest

from lighthubert_hf import LightHubertModel, Subnet
from lighthubert_hf.costs.profiling import count_parameters, macs_per_second, shape
from lighthubert_hf.search.costs import Cost, Limit
from lighthubert_hf.search.run import search
from lighthubert_hf.search.score import Score

NAME = "</script><b>my supernet</b>"  # names come from outside
# Root may start it in a container, and it asks nobody for anything.
BROWSER = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1600",
)


@pytest.fixture(scope="session")
def shown_supernet(make_model):
    return make_model(LightHubertModel)


@pytest.fixture(scope="session")
def searched(shown_supernet, tmp_path_factory):
    """Folder of a finished search: of some twenty subnets, those of most operations have the least loss."""
    folder, config = tmp_path_factory.mktemp("explore") / "search", shown_supernet.config

    def loss(subnet: Subnet) -> float:
        return 1 - macs_per_second(config, subnet) / macs_per_second(config) / 2

    teacher = {"name": "acme/teacher", "parameters": 2 * count_parameters(config), "macs_per_second": 10**8}
    score = Score(loss, baseline=1.0, teacher=teacher | shape(config))
    largest = count_parameters(config)
    search(
        shown_supernet,
        score,
        folder,
        objectives=[Cost("macs")],
        limits=[Limit(Cost("parameters"), 0.99 * largest)],
        trials=16,
        population_size=4,
        supernet=NAME,
        progress=False,
    )
    return folder


@pytest.fixture
def trained(tmp_path):
    """Folder of a distillation that still runs: the last line of its log is half written."""
    lines = [
        {"step": 10, "loss": 0.5, "lr": 1e-3, "gradient_norm": 2.0, "audio_seconds": 90.0, "skipped_steps": 0},
        {"step": 10, "validation": {"smallest": 0.6, "largest": 0.4}},
        {"step": 20, "loss": None, "lr": 5e-4, "gradient_norm": None, "audio_seconds": 180.0, "skipped_steps": 1},
    ]
    text = "".join(json.dumps(line | {"audio_per_second": 3.0}) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '{"step": 30, "lo')
    return tmp_path


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium; the tests that need it are skipped where Debian's `chromium-driver` is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its driver (Debian: apt-get install chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*BROWSER, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.implicitly_wait(5)
    yield started
    started.quit()
