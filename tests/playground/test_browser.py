"""The page in a browser: the whole path, without an error in its console and without a request to anywhere else."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from playground.server import Settings, served

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.one_backend,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE = 240_000  # milliseconds, of a machine that does other things, too
TEXT = "The cat sat on the mat and looked at the moon. A function returns the value of the list. " * 60


@pytest.fixture
def browser():
    """Opens pages, each a browser of its own; afterwards they must have had nothing to complain of."""
    complaints, opened = [], []
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def open_page(address, **options):
            page = chromium.new_context(accept_downloads=True, **options).new_page()
            page.set_default_timeout(PATIENCE)
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            local = (address, address.replace("http", "ws"), "data:", "blob:")
            page.on("request", lambda r: None if r.url.startswith(local) else complaints.append(r.url))
            page.goto(address)
            page.wait_for_selector("#job .job")
            opened.append(page)
            return page

        yield open_page
        chromium.close()
    assert not complaints


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def choose(page, where, text):
    page.locator(f"{where} input").click()
    page.get_by_role("option", name=text).first.click()


def downloaded(page, button, path):
    page.wait_for_function(f"() => document.querySelector('{button}') && !document.querySelector('{button}').disabled")
    with page.expect_download() as caught:
        page.locator(button).click()
    caught.value.save_as(path)
    return path


def until_job(page, state):
    page.wait_for_selector(f"#job .job.{state}")


def test_the_whole_path(browser, shipped, root, address, tmp_path):
    page = browser(address, viewport={"width": 1280, "height": 900})
    train(page)
    look_inside(page)
    generate(page)
    adapt(page)
    compare(page, tmp_path)
    take_away(page, tmp_path)
    with served(Settings(root=tmp_path / "fresh", shipped=shipped)) as fresh:
        elsewhere = browser(fresh)
        tab(elsewhere, "Evaluate & export")
        elsewhere.locator("#history .empty, #history svg").first.wait_for()
        elsewhere.locator("input[type=file]").last.set_input_files(tmp_path / "run.zip")
        elsewhere.get_by_text("Opened as run-1.").wait_for()
        choose(elsewhere, "#model", "run-1")
        tab(elsewhere, "Generate")
        elsewhere.locator("#written .token").nth(3).wait_for()
        elsewhere.context.close()  # Before its server, which it would miss.


def train(page):
    page.get_by_label("My own text").click()
    page.get_by_label("Your text").fill(TEXT)
    page.get_by_text("More settings").click()
    page.get_by_label("Steps (0: as time allows)").fill("600")
    page.get_by_label("number input for Layers").fill("1")
    page.get_by_label("number input for Width").fill("32")
    page.get_by_label("number input for Width").blur()
    page.locator("#train").click()
    page.locator("#training-view .sample-step").first.wait_for()
    page.reload()
    until_job(page, "running")
    page.locator("#training-view .sample-step").first.wait_for()
    page.locator("#stop").click()
    until_job(page, "stopped")
    page.locator("#resume:not([disabled])").click()
    page.wait_for_selector("#job .job.running, #job .job.queued")
    until_job(page, "done")
    page.get_by_text("600 / 600").wait_for()
    assert "best" in page.locator("#training-view svg").text_content()


def look_inside(page):
    page.wait_for_function("() => document.querySelector('#model input').value.startsWith('run-1')")
    tab(page, "Look inside")
    page.locator("#heads .head-lines line").first.wait_for(state="attached")
    page.get_by_text("with all heads").wait_for()
    before = page.locator("#effect .bars, #effect .facts").all_inner_texts()
    page.locator("#heads .head-cell").first.click()
    page.locator("#ablate").click()
    page.get_by_text("without layer 0 head 0").wait_for()
    assert page.locator("#effect .bars, #effect .facts").all_inner_texts() != before
    assert page.locator("#heads .head-cell.is-off").count() == 1
    page.get_by_role("button", name="All heads on").click()
    page.get_by_text("switch one off to see what changes").wait_for()
    assert page.locator("#effect .bars, #effect .facts").all_inner_texts() == before
    page.locator("#checkpoint input[type=number]").fill("-2")
    page.locator("#checkpoint input[type=number]").blur()
    page.locator("#checkpoint").get_by_text("Training: at step").wait_for()
    assert page.locator("#effect .bars, #effect .facts").all_inner_texts() != before
    page.locator("#checkpoint input[type=number]").fill("0")
    page.locator("#checkpoint input[type=number]").blur()
    page.locator("#checkpoint").get_by_text("as it is now").wait_for()


def generate(page):
    tab(page, "Generate")
    page.get_by_text("tokens written.").wait_for()
    written = page.locator("#written").inner_text()
    assert len(written) > 10 and page.locator("#next-token .bars li").count() > 3
    page.locator("#written .token").nth(2).click()
    page.locator("#alternatives .branch").last.click()
    page.get_by_text("tokens written.").wait_for()
    assert page.locator("#written").inner_text() != written


def adapt(page):
    tab(page, "Adapt")
    page.locator("#lora-text textarea").fill("A dog ran in the park and barked at the sun. " * 20)
    page.get_by_label("number input for Steps").fill("24")
    page.locator("#train-lora").click()
    page.get_by_text("With the LoRA, 1 times").wait_for()
    page.get_by_label("LoRA on").click()
    page.get_by_text("With the LoRA switched off").wait_for()
    left, right = page.locator("#lora-sides .answer").all_inner_texts()
    assert left == right
    page.locator("#quantize").click()
    page.locator("#quantized tbody tr").nth(2).wait_for()
    assert "int4" in page.locator("#quantized").inner_text()


def compare(page, folder):
    tab(page, "Compare & vote")
    choose(page, "#other", "GPT")
    for number in range(5):
        page.locator("#ask").click()
        page.locator("#answers .answer").first.wait_for()
        page.get_by_role("heading", name="Left").wait_for()
        page.locator(("#vote-left", "#vote-tie")[number % 2]).click()
        page.get_by_role("heading", name="Left").wait_for(state="detached")
    file = downloaded(page, "#download-votes", folder / "votes.jsonl")
    votes = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(votes) == 5 and sum(vote["chosen"] is not None for vote in votes) == 3


def take_away(page, folder):
    tab(page, "Evaluate & export")
    page.locator("#export").click()
    file = downloaded(page, "#download-export", folder / "export.zip")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "export")
    (saved,) = (path.parent for path in (folder / "export").rglob("saved_model.pb"))
    script = f"import tensorflow as tf; print(sorted(tf.saved_model.load({str(saved)!r}).signatures))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert "generate" in done.stdout, done.stderr[-2000:]
    page.locator("#save-run").click()
    downloaded(page, "#download-run", folder / "run.zip")


def test_two_browsers_and_other_families(browser, address, shipped):
    one, two = browser(address), browser(address, viewport={"width": 390, "height": 800}, color_scheme="dark")
    choose(one, "#model", "T5")
    tab(one, "Look inside")
    one.get_by_label("Cross: answer to source").click()
    one.get_by_text("source", exact=True).wait_for()
    choose(one, "#model", "BERT")
    tab(one, "Generate")
    one.get_by_text("the five likeliest").wait_for()
    assert one.locator("#written .bars li").count() == 5
    assert "run-1" not in two.content()
    overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert two.evaluate(overflow) <= 0


def test_errors_and_long_texts_are_shown(browser, address):
    page = browser(address)
    page.get_by_label("My own text").click()
    page.get_by_label("Your text").fill("<script>alert(1)</script>")
    page.locator("#train").click()
    page.get_by_text("The text has 25 characters").wait_for()
    page.get_by_role("button", name="Close").first.click()
    page.locator("#prompt textarea").fill("the moon, a list <b>x</b> " * 12)
    tab(page, "Look inside")
    page.locator("#heads .head-lines text").nth(60).wait_for(state="attached")
    tab(page, "Tokens")
    page.locator("#own-tokens .chip").nth(100).wait_for()
    assert page.locator("#own-tokens b b").count() == 0
