"""Waits for what a page comes to. Playwright's wait_for_function evaluates text in it, and the page forbids that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def wait_until(page: Page, expression: str, seconds: float = 30.0) -> None:
    """Until a JavaScript expression is true in the page. Raises AssertionError with the expression if it never is."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(30)


def wait_for_count(page: Page, selector: str, count: int) -> None:
    """Until so many elements are there."""
    wait_until(page, f"document.querySelectorAll({selector!r}).length === {count}")
