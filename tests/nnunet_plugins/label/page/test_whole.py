"""The page as a whole: who may open it, what it lists, and whether it can be read."""

import pytest

from nnunet_plugins.label.colours import colour
from tests.nnunet_plugins.label.page.conftest import needs_a_browser

pytestmark = needs_a_browser
SIGNED_OUT = "document.getElementById('sign-in').open"


def test_the_token_leaves_the_address_and_nothing_else_is_loaded(page, server):
    assert page.run("location.href") == f"{server.address}/"
    assert page.run("sessionStorage.getItem('mambamed-token')") == server.token
    asked = page.requests()
    assert asked
    assert all(address.startswith((server.address, "about:")) for address in asked)
    assert not any(server.token in a for a in asked if "#" not in a)
    assert page.complaints() == []


def test_a_strict_policy_holds(server):
    policy = server.anonymous().get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy


def test_without_the_token_it_is_asked_for(chromium, server):
    chromium.open("about:blank")
    chromium.open(server.address)
    chromium.wait("document.readyState === 'complete'")
    chromium.run("sessionStorage.clear(); location.reload()")
    chromium.wait(SIGNED_OUT)
    assert chromium.run("document.querySelectorAll('.study').length") == 0
    chromium.type("#token", "x" * 40)
    chromium.key("Enter", "Enter", "\r")
    chromium.wait("document.getElementById('sign-in-error').textContent.includes('does not know')")
    chromium.run("document.getElementById('token').value = ''")
    chromium.type("#token", server.token)
    chromium.key("Enter", "Enter", "\r")
    chromium.wait(f"!{SIGNED_OUT} && document.querySelectorAll('.study').length > 3")
    chromium.click("#leave")
    chromium.wait(SIGNED_OUT)


def test_studies_and_models_are_listed(page):
    names = page.run("[...document.querySelectorAll('.study')].map(s => s.dataset.name)")
    assert names == [
        "bright",
        "broken",
        "clip",
        "series",
        "study_0",
        "study_1",
        "study_2",
        "turned",
    ]
    told = page.run("document.querySelector('.study[data-name=study_0]').innerText")
    assert "3D" in told
    assert "final" in told
    assert "kB" in told
    card = page.run("document.querySelector('#models details[data-model=tiny]').textContent")
    assert "shell" in card
    assert "core" in card
    assert "as it came" in card
    swatch = page.run("document.querySelector('#models .swatch').style.background")
    assert swatch == f"rgb{colour(1)}"
    page.type("#filter", "dy_1")
    page.wait("document.querySelectorAll('.study').length === 1")


def luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, choose, scheme):
    page.scheme(scheme)
    choose("clip", "original")
    pairs = page.run(
        """[...document.querySelectorAll(
          'h1,h2,p,button:not(:disabled),label,th,td,.chip,.name,.meta,summary')]
        .filter(e => e.innerText && e.getClientRects().length && !e.closest('.picture'))
        .map(e => { let b = e, c;
          do { c = getComputedStyle(b).backgroundColor; b = b.parentElement; }
          while (/, 0\\)$|transparent/.test(c) && b);
          const rgb = t => t.match(/[\\d.]+/g).slice(0, 3).map(n => n / 255);
          return [e.innerText.slice(0, 30), rgb(getComputedStyle(e).color), rgb(c)]; })"""
    )
    assert len(pairs) > 30
    for text, ink, paper in pairs:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ink, paper)
    assert (luminance(pairs[0][2]) > 0.5) == (scheme == "light")


def test_everything_fits_a_small_screen(page, choose, server):
    answer = server.client.post(
        "/infer/tiny", params={"image": "study_0"}, data={"params": '{"save_label": true}'}
    )
    assert answer.status_code == 200
    page.click("#reload")
    page.wait("document.querySelector('.study[data-name=study_0] .original')")
    choose("study_0", "original")
    page.resize(1280, 800)
    assert page.run("document.documentElement.scrollWidth") <= 1280
    assert page.run("document.documentElement.scrollHeight") <= 800
    cut = page.run(
        "[...document.querySelectorAll('button')].filter(b => {"
        " const r = b.getBoundingClientRect();"
        " const a = b.closest('aside, section, dialog')?.getBoundingClientRect();"
        " return r.width && a && (r.right > a.right + 1 || r.left < a.left - 1); })"
        ".map(b => b.textContent)"
    )
    assert cut == []
    assert page.run("document.querySelectorAll('.pane').length") == 3
