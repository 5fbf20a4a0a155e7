"""What the tests of the documentation see on a page."""

from __future__ import annotations

from pathlib import Path

from tests.doc_pages import anchors, blocks, code_spans, links

PAGE = """\
# A page, with `code`

Text with `a span` and a [link](other.md#here).

```python
x = 1
```

<!-- not run: needs a CUDA device -->
```python
y = 2
```

    make test

    α = 1 + m / Σ

```
spectral-fast analyze PATH
```

```rust
fn main() {}
```

- a list

    whose second paragraph is no block

## A page, with code
"""


def test_blocks_spans_links_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    found = [(block.language, block.kind, block.reason, block.code) for block in blocks(page)]
    assert found == [
        ("python", "", "", "x = 1\n"),
        ("python", "not run", "needs a CUDA device", "y = 2\n"),
        ("console", "", "", "make test\n\nα = 1 + m / Σ\n"),
        ("console", "", "", "spectral-fast analyze PATH\n"),
        ("rust", "", "", "fn main() {}\n"),
    ]
    assert [PAGE.splitlines()[block.line - 1].strip() for block in blocks(page)] == [
        block.code.splitlines()[0] for block in blocks(page)
    ]
    assert code_spans(page) == ["code", "a span"]
    assert list(links(page)) == ["other.md#here"]
    assert anchors(page) == {"a-page-with-code", "a-page-with-code-1"}
