"""What pages for people say, as proxies send them in place of a service's answer."""

import pytest

from llmpilot.openai_client.pages import readable

CLOUDFLARE = """<!DOCTYPE html>
<!--[if lt IE 7]> <html class="no-js ie6 oldie" lang="en-US"> <![endif]-->
<!--[if gt IE 8]><!--> <html class="no-js" lang="en-US"> <!--<![endif]-->
<head>
<title>m.example | 524: A timeout occurred</title>
<style>body{margin:0}</style></head>
<body><p>The origin&#39;s answer is late</p><script>if (a < b) {}</script></body></html>"""


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (CLOUDFLARE, "m.example | 524: A timeout occurred: The origin's answer is late"),
        (f"text/html: {CLOUDFLARE}"[:250], "text/html: m.example | 524: A timeout occurred"),
        ("<html><title>502</title><h1>502</h1> nginx</html>", "502 nginx"),
        ("<html>down for maintenance", "down for maintenance"),
        ('{"error": "a < b"}', '{"error": "a < b"}'),
        ("model: <unknown>", "model: <unknown>"),
        ("", ""),
    ],
)
def test_a_page_is_its_title_and_text(said: str, read: str) -> None:
    assert readable(said) == read


def test_pages_that_never_close_what_they_open_are_read_soon() -> None:
    assert readable("<html>" + "<!--" * 4000 + "<script>" * 1000) == ""
