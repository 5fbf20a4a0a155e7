"""Opens a page in a real browser (Chromium, as Qt WebEngine has it) without a display, and tells what it saw.

    python -m tests.browser PAGE SCHEME WIDTH [WIDTH ...]     SCHEME: light or dark

prints JSON: ``console`` and ``requests`` of the whole visit, and for every width what ``LOOK`` finds. With
the environment variable SCREENSHOTS set to a folder it leaves a picture of every width there. A process of
its own, since Qt and torch both bring threads and signal handlers.
"""

import json
import os
import sys
from pathlib import Path

LOOK = """
JSON.stringify({
  inner: innerWidth,
  scroll: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  background: getComputedStyle(document.body).backgroundColor,
  title: document.title,
  text: document.body.innerText,
  images: [...document.images].map(i => ({
    alt: i.alt, complete: i.complete, natural: i.naturalWidth, width: i.getBoundingClientRect().width})),
  outside: [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll *") &&
    e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName),
})
"""


def visit(page: Path, scheme: str, widths: list[int]) -> dict:
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ["QT_QUICK_BACKEND"] = "software"
    # Chromium's sandbox cannot be set up by root or in most containers.
    preferred = {"dark": 0, "light": 1}[scheme]
    flags = f"--no-sandbox --disable-gpu --blink-settings=preferredColorScheme={preferred}"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = flags
    from PySide6.QtCore import QEventLoop, Qt, QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    app = QApplication(sys.argv[:1])  # has to be kept
    console, requests, looks = [], [], []

    class Requests(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):
            requests.append(info.requestUrl().toString()[:200])

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):
            console.append(f"{level.name}: {message} (line {line})")

    view = QWebEngineView()
    view.setPage(Page(view))
    interceptor = Requests()
    view.page().setUrlRequestInterceptor(interceptor)
    view.show()

    def wait(start) -> object:
        loop, answer = QEventLoop(), []
        start(lambda value: (answer.append(value), loop.quit()))
        loop.exec()
        return answer[0]

    for width in widths:
        view.resize(width, 900)

        def load(done):
            view.loadFinished.connect(done, Qt.ConnectionType.SingleShotConnection)
            view.load(QUrl.fromLocalFile(str(page.resolve())))

        if not wait(load):
            raise SystemExit(f"{page} could not be loaded")
        look = json.loads(wait(lambda done: view.page().runJavaScript(LOOK, 0, done)))
        looks.append(look)
        if folder := os.environ.get("SCREENSHOTS"):
            view.resize(width, min(int(look["height"]), 16000))
            wait(lambda done: QTimer.singleShot(1500, lambda: done(None)))
            view.grab().save(str(Path(folder) / f"{scheme}-{width}.png"))
    del app
    return {"console": console, "requests": requests, "looks": looks}


if __name__ == "__main__":
    print(json.dumps(visit(Path(sys.argv[1]), sys.argv[2], [int(width) for width in sys.argv[3:]])))
    sys.stdout.flush()
    os._exit(0)  # Qt's teardown order is not ours to get right
