"""docs/compatibility.md says what the tests hold."""

import pytest
from compatibility import PAGE, page


@pytest.mark.one_backend
def test_the_page_is_what_the_tables_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "Run python tests/compatibility.py."
