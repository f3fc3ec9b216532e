import pandas
import plotly.graph_objects as go

from search.report_page import Charts, Code, Section, Table, Text, to_html, to_markdown

FRAME = pandas.DataFrame({"name": ["kd", "a|b <i>"], "p": [0.01, None], "mean": ["93.10 ± 0.50", "-1.20"]})
SECTIONS = [
    Section("The & end", [Text("a < b"), Text("why", note=True), Table(FRAME), Code("--set x='<1>'", "sh")]),
    Section("Pictures", [Charts([go.Figure(), go.Figure()]), Charts([go.Figure()], "history.png")]),
]


def test_markdown():
    text = to_markdown("study", "about", "it is better", SECTIONS)
    assert text.startswith("# study\n\nabout\n\n**it is better**\n\n## The & end\n\na < b\n\n*why*\n")
    assert "| name | p | mean |\n| --- | ---: | ---: |\n| kd | 0.01 | 93.10 ± 0.50 |\n| a\\|b <i> | - | -1.20 |" in text
    assert "```sh\n--set x='<1>'\n```" in text
    assert text.endswith("*Its figures are in report.html.*\n\n![Pictures](history.png)\n")


def test_the_page_escapes_what_others_wrote():
    page = to_html("<study>", "a & b", "x < y", SECTIONS)
    assert "<title>&lt;study&gt;</title>" in page and "<h1>&lt;study&gt;</h1>" in page
    assert '<p class="subtitle">a &amp; b</p><p class="lead">x &lt; y</p>' in page
    assert '<a href="#the-end">The &amp; end</a>' in page and '<section id="the-end">' in page
    assert "<td>a|b &lt;i&gt;</td><td class=number>-</td>" in page
    assert "<pre><code>--set x=&#x27;&lt;1&gt;&#x27;</code></pre>" in page


def test_plotly_is_embedded_once_and_only_for_figures():
    with_figures = to_html("study", "", "", SECTIONS)
    assert with_figures.count("plotly.js v") == 1
    assert [f'id="figure-{number}"' in with_figures for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert "plotly.js v" not in to_html("study", "", "", SECTIONS[:1])
