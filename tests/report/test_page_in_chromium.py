"""The page in a real browser: sliders by keys, mouse and touch, sorting, phones, dark, no script, nothing loaded."""

import pytest
from chromium import Page, browser

from rdn_fast.commands.report import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser() is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]

AT = "document.querySelector('.stage').style.getPropertyValue('--at')"
SLIDER = "document.querySelector('.stage input')"
BOX = "(box => [box.left, box.top, box.width])(document.querySelectorAll('{}')[{}].getBoundingClientRect())"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium):
    chromium.send("Emulation.setScriptExecutionDisabled", value=False)
    return chromium


def show(page, *folders, **size):
    file = folders[0] / "report.html"
    report([str(folder) for folder in folders], str(file))
    page.resize(**{"width": 1200, **size})
    page.open(file)
    return file


def complaints(page):
    """Errors of scripts, and what the browser logged or tried to load beyond the page itself."""
    page.evaluate("1")
    requests = [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]
    foreign = [url for url in requests if not url.startswith(("file:", "data:"))]
    return foreign + [
        event for event in page.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
    ]


def test_the_slider_moves_by_keys(page, make_run):
    show(page, make_run())
    assert page.evaluate(f"[{SLIDER}.type, {SLIDER}.ariaLabel.startsWith('Compare: bird, 96 by 96 pixels')]") == [
        "range",
        True,
    ]
    assert page.evaluate(AT) == "50%"
    page.evaluate("document.querySelectorAll('.tools select')[1].focus()")
    page.press("Tab")  # from the choice before it
    assert page.evaluate(f"document.activeElement === {SLIDER}")
    assert page.evaluate("getComputedStyle(document.querySelector('.stage')).outlineStyle") == "solid"
    page.press("ArrowRight", times=3)
    assert page.evaluate(AT) == "53%"
    page.press("ArrowLeft")
    assert page.evaluate(AT) == "52%"
    text = page.evaluate(f"{SLIDER}.getAttribute('aria-valuetext')")
    assert text.startswith("52% bicubic, ")
    assert "RDN, step 300" in text
    visible = "getComputedStyle(document.querySelector('.stage .left')).clipPath"
    page.press("Home")
    assert (page.evaluate(AT), page.evaluate(visible)) == ("0%", "inset(0px 100% 0px 0px)")
    page.press("End")
    assert (page.evaluate(AT), page.evaluate(visible)) == ("100%", "inset(0px 0% 0px 0px)")
    others = page.evaluate(
        "[...document.querySelectorAll('.stage')].slice(1).map(s => s.style.getPropertyValue('--at'))"
    )
    assert others == ["50%", "50%"]
    assert complaints(page) == []


def test_the_slider_follows_mouse_and_touch(page, make_run):
    show(page, make_run(), height=3000)
    left, top, width = page.evaluate(BOX.format(".stage", 0))
    page.mouse("mouseMoved", left + 0.9 * width, top + 20)
    assert page.evaluate(AT) == "50%"  # no button is down
    page.mouse("mousePressed", left + 0.25 * width, top + 20, buttons=1)
    assert page.evaluate(AT) == "25%"
    page.mouse("mouseMoved", left + 0.8 * width, top + 60, buttons=1)
    page.mouse("mouseMoved", left + 1.5 * width, top + 60, buttons=1)  # beyond the edge
    assert page.evaluate(AT) == "100%"
    page.mouse("mouseReleased", left + 1.5 * width, top + 60)
    touch = [{"x": left + 0.4 * width, "y": top + 30}]
    page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=touch)
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert page.evaluate(AT) == "40%"


def test_the_pictures_that_are_compared_can_be_chosen(page, make_run):
    show(page, make_run())
    pictures = "[...document.querySelector('.stage').querySelectorAll('img')].map(image => image.src)"
    source = "document.querySelector('.compare .shot[data-key=\"{}\"] img').src"
    bicubic, early, last, hr = (page.evaluate(source.format(key)) for key in ("bicubic", "step-10", "step-300", "hr"))
    assert page.evaluate(pictures) == [last, bicubic]
    page.evaluate("document.querySelectorAll('.tools select')[0].focus()")
    page.press("End")  # the last choice
    assert page.evaluate(pictures) == [last, hr]
    page.evaluate(
        "(s => { s.value = 'step-10'; s.dispatchEvent(new Event('change')) })(document.querySelectorAll('select')[1])"
    )
    assert page.evaluate(pictures) == [early, hr]
    assert (
        page.evaluate("document.querySelectorAll('.stage img')[2].src") != early
    )  # the best crop has the last step only


def test_runs_are_compared_by_one_slider(page, make_run):
    show(page, make_run("a"), make_run("b", sheets=(250,)))
    labels = page.evaluate(
        "[...document.querySelector('.stage').querySelectorAll('span')].map(label => label.textContent)"
    )
    assert labels[0].startswith("a, step 300, ")
    assert labels[1].startswith("b, step 250, ")
    assert complaints(page) == []


def test_the_table_sorts_by_keys(page, make_run):
    show(page, make_run())
    order = "[...document.querySelectorAll('.sorts tbody th')].map(cell => cell.textContent)"
    buttons = "document.querySelectorAll('.sorts thead button')"
    numbers = "[...document.querySelectorAll('.sorts tbody tr')].map(row => parseFloat(row.cells[3].textContent))"
    page.evaluate(f"{buttons}[0].focus()")
    page.press("Enter")
    assert page.evaluate(order) == ["bird", "other"]
    page.press("Enter")
    assert page.evaluate(order) == ["other", "bird"]
    assert page.evaluate("document.querySelector('.sorts thead th').ariaSort") == "descending"
    page.evaluate(f"{buttons}[3].focus()")
    page.press("Enter")
    assert page.evaluate(numbers) == sorted(page.evaluate(numbers))
    page.press("Enter")
    assert page.evaluate(numbers) == sorted(page.evaluate(numbers), reverse=True)


def test_the_switch_and_the_values_under_the_pointer(page, make_run):
    show(page, make_run(), height=3000)
    shown = "[...document.querySelectorAll('.plot')].filter(plot => plot.offsetHeight).map(plot => plot.dataset.x)"
    assert page.evaluate(shown) == ["step"] * 4
    page.evaluate("document.querySelector('#by-steps').focus()")
    page.press("ArrowRight")
    assert page.evaluate(shown) == ["minute"] * 4
    page.press("ArrowLeft")
    assert page.evaluate(shown) == ["step"] * 4
    left, top, width = page.evaluate(BOX.format(".by-steps .plot", 1))
    page.mouse("mouseMoved", left + width * 0.5, top + 30)
    told = page.evaluate("document.querySelectorAll('.readout')[1].textContent")
    assert told.startswith("step 150 ")
    assert "RDN 33.87 dB" in told  # 34 - 20 / 150


@pytest.mark.parametrize("width", [320, 390, 820, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window(page, make_run, tmp_path, width, dark):
    names = ["a" * 60, "b with a long name, too"]
    show(page, *(make_run(name, picture="p" * 80) for name in names), width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part > 128)")
    assert light != dark
    assert complaints(page) == []


def test_without_scripts_everything_is_there(page, make_run):
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    show(page, make_run())
    assert page.evaluate("document.querySelectorAll('.stage').length") == 0
    seen = "[...document.querySelectorAll('{}')].every(each => each.getBoundingClientRect().height > 60)"
    assert page.evaluate("document.querySelectorAll('.shot img').length") == 10
    assert page.evaluate(seen.format(".shot img"))
    assert page.evaluate(seen.format(".by-steps svg"))
    assert page.evaluate("[...document.querySelectorAll('.shot img')].every(each => each.naturalWidth === 96)")


def test_names_are_inert(page, make_run):
    evil = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>"
    resume = {"event": "resume", "step": 300, "device": evil, evil: evil, "recipe": {evil: evil}}
    show(page, make_run("a<svg onload='window.hit=1'>", picture=evil, more=[resume]), make_run("b", picture=evil))
    page.evaluate("document.querySelectorAll('.tools select').forEach(s => s.dispatchEvent(new Event('change')))")
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.querySelector('.compare figcaption b').textContent") == evil
    assert complaints(page) == []


def test_a_script_that_is_put_into_the_page_does_not_run(page, make_run, tmp_path):
    file = show(page, make_run())
    file.write_text(file.read_text("utf-8").replace("</main>", "<script>window.hit=1</script></main>"), "utf-8")
    page.open(file)
    assert page.evaluate("window.hit") is None
    assert complaints(page) != []  # the browser tells that it refused
