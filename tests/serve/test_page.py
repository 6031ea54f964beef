"""The page, in a browser without a screen: a question typed, its answer streamed, both languages."""

import json
import shutil
import subprocess

import pytest

pytest.importorskip("transformers")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from tests.serve.conftest import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCRIPT = """
<script>
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

    with served() as server:
        import httpx

        expected = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={
                "messages": [{"role": "user", "content": "hi"}],
                "temperature": 0,
                "max_tokens": 8,
                "top_p": 0.95,
            },
            timeout=60,
        ).json()["choices"][0]["message"]["content"]
        page = tmp_path / "page.html"
        page.write_text(app.PAGE.read_text(encoding="utf-8").replace("</body>", SCRIPT), encoding="utf-8")
        monkeypatch.setattr(app, "PAGE", page)
        for language, words in (("en", "8 tokens"), ("zh-CN", "8 词元")):
            shown = subprocess.run(
                [
                    *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--accept-lang={language}"),
                    *(f"--lang={language}", f"--user-data-dir={tmp_path / language}", "--virtual-time-budget=20000"),
                    *("--dump-dom", server.url),
                ],
                capture_output=True,
                text=True,
                timeout=180,
            ).stdout
            assert '<div class="turn user">hi</div>' in shown and words in shown, json.dumps(shown[-1500:])
            assert expected.isprintable() is False or expected in shown
