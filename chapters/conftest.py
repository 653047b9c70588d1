"""How `pytest --nbval` compares a chapter with its recorded outputs."""

from functools import partial


def pytest_collectstart(collector):
    """Progress bars are drawn on stderr: what they show is a matter of time and of the width of the screen."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


def pytest_itemcollected(item):
    """Git keeps no execution counts, and without one nbval takes a cell as never run and does not compare it."""
    if hasattr(item, "cell"):
        item.cell.execution_count = 1
        # Git keeps no pictures either, and the HTML of a live figure holds one.
        if "<Live figure" in str(item.cell.get("outputs")):
            skipped = (*item.parent.skip_compare, "text/html")
            item.compare_outputs = partial(item.compare_outputs, skip_compare=skipped)
