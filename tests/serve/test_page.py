"""The page, in a browser without a screen: a question typed, its answer streamed, both languages."""

import shutil
import subprocess
import time

import pytest

pytest.importorskip("transformers")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tests.serve.conftest import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Asks, and when the note below the answer is there, tells the server what stands on the page.
SCRIPT = """
<script>
new MutationObserver(() => {
  if (document.querySelector(".note, .error")) fetch("health?" + encodeURIComponent($("talk").innerText));
}).observe($("talk"), {childList: true});
addEventListener("load", () => {
  $("temperature").value = "0"; $("max_tokens").value = "8"; $("input").value = "hi";
  $("form").requestSubmit();
});
</script></body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.slow
def test_a_question_is_answered_in_a_browser(monkeypatch, tmp_path):
    from megatron_sky.serve import app

    page = tmp_path / "page.html"
    page.write_text(app.PAGE.read_text(encoding="utf-8").replace("</body>", SCRIPT), encoding="utf-8")
    monkeypatch.setattr(app, "PAGE", page)
    with served() as server:
        for language, word in (("en", " tokens"), ("zh-CN", " 词元")):
            server.asked.clear()
            browser = subprocess.Popen(
                [
                    *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
                    *(f"--user-data-dir={tmp_path / language}", f"--accept-lang={language}", f"--lang={language}"),
                    server.url,
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                until = time.monotonic() + 180
                while not server.asked and time.monotonic() < until:
                    time.sleep(0.1)
            finally:
                browser.terminate()
                browser.wait(30)
            (shown,) = server.asked[:1]
            assert shown.startswith("hi") and word in shown
