"""How the report's page looks: light, readable on a laptop, printable."""

CSS = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --tint: #f5f7f9; --accent: #1f5f9e; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; display: grid; grid-template-columns: 15rem minmax(0, 66rem); gap: 0 3rem;
  justify-content: center; }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding: 3.2rem 0 2rem 1.5rem;
  font-size: .875rem; line-height: 1.35; }
nav ol { list-style: none; margin: 0; padding: 0; border-left: 1px solid var(--line); }
nav a { display: block; padding: .32rem .9rem; margin-left: -1px; border-left: 2px solid transparent;
  color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--ink); }
nav a.here { color: var(--accent); border-color: var(--accent); font-weight: 600; }
main { padding: 2.6rem 1.5rem 5rem 0; min-width: 0; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em; margin: 3.2rem 0 .8rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
p { margin: .7rem 0; max-width: 46rem; }
.subtitle { color: var(--soft); margin: .35rem 0 1.4rem; }
.lead { font-size: 1.16rem; line-height: 1.55; max-width: 52rem; padding: 1.1rem 1.4rem; background: var(--tint);
  border-left: 4px solid var(--accent); border-radius: 0 6px 6px 0; }
.note { color: var(--soft); font-size: .925rem; }
.table { overflow-x: auto; margin: 1rem 0; max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem 1.3rem .42rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; position: sticky; top: 0; background: #fff; }
td { max-width: 34rem; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--tint); }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1.1rem;
  max-height: 26rem; overflow: auto; font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
figure { margin: 0; min-width: 0; }
.single { margin: 1rem 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; margin: 1rem 0; }
@media (max-width: 68rem) {
  body { display: block; }
  nav { position: static; max-height: none; padding: 1.2rem 1.5rem 0; }
  nav ol { display: flex; flex-wrap: wrap; border: 0; }
  nav a, nav a.here { border: 0; padding: .1rem 1rem .1rem 0; margin: 0; }
  main { padding: 1.2rem 1.5rem 3rem; max-width: 66rem; margin: auto; }
}
@media print {
  body { display: block; font-size: 10.5pt; }
  nav, .modebar-container { display: none !important; }
  main { padding: 0; }
  h2 { margin-top: 1.6rem; break-after: avoid; }
  figure, tr, .lead { break-inside: avoid; }
  .table, pre { max-height: none; overflow: visible; }
  pre { white-space: pre-wrap; }
  th { position: static; white-space: normal; }
  table { font-size: 8pt; }
  th, td { padding-right: .6rem; }
  .charts { grid-template-columns: 1fr 1fr; }
}
"""

# Marks the section in view in the contents, and fits the figures to the paper.
SCRIPT = """
const links = new Map([...document.querySelectorAll("nav a")].map(a => [a.getAttribute("href").slice(1), a]));
const sections = [...document.querySelectorAll("section")];
const mark = () => {
  const passed = sections.filter(section => section.getBoundingClientRect().top < innerHeight / 3);
  const here = (passed.at(-1) || sections[0] || {}).id;
  links.forEach((a, id) => a.classList.toggle("here", id === here));
};
addEventListener("scroll", mark, {passive: true});
mark();
const fit = () => document.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.Plots.resize(plot));
addEventListener("beforeprint", fit);
addEventListener("afterprint", fit);
"""
