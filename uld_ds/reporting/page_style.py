"""How a run's report looks."""

STYLE = """
:root { --s0: #0b62a4; --s1: #b3400a; --s2: #5b6470; --s3: #0a7a55; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #6cb8f0; --s1: #ff9d66; --s2: #a3adb8; --s3: #58d3a6; --card: #1c2026; }
}
* { box-sizing: border-box; }
body {
  margin: 2rem auto; max-width: 84rem; padding: 0 1.5rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: .25rem 0 1.25rem; max-width: 46rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.names { font-weight: 600; overflow-wrap: anywhere; }
.names span, .figures li, figcaption span, .context, .phases td:last-child { color: var(--faint); }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 2.25rem; margin: 0; padding: 0; list-style: none; }
.setting { margin-top: 1rem; font-size: .9rem; max-width: none; overflow-wrap: anywhere; }
.setting span { display: inline-block; margin-right: 1.5rem; }
.figures b { color: var(--ink); font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.warning { color: var(--alarm); font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); gap: 1.25rem; }
.grid > * { background: var(--card); border-radius: .4rem; padding: .75rem .9rem; margin: 0; min-width: 0; }
@media (min-width: 54rem) { .grid .two { grid-column: span 2; } }
.grid figure { margin-inline: 0; }
.card figure { margin: 0 0 .75rem; }
figcaption span { display: block; font-size: .85rem; }
figure > svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
svg text { font: 13px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--faint); }
svg .name { fill: var(--ink); }
.rule { stroke: var(--line); }
path { fill: none; }
.axis { stroke: var(--faint); }
.even { stroke: var(--faint); stroke-dasharray: 1 4; }
.line { stroke-width: 2; stroke-linejoin: round; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.mark { fill: var(--card); stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .35rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; }
.sample { width: 34px; height: 10px; margin-right: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th { text-align: left; font-weight: 600; vertical-align: top; white-space: nowrap; }
td { vertical-align: top; overflow-wrap: anywhere; }
th, td { padding: .2rem .75rem .2rem 0; }
.card thead th { color: var(--faint); font-weight: 400; }
.context { font-size: .9rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.card .context { min-height: 4.5em; }
q { quotes: none; }
mark { background: none; color: var(--ink); font-weight: 600; border-bottom: 2px solid var(--ink); }
code, pre, .answer dd { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { border: 1px solid var(--line); border-radius: .2rem; padding: 0 .2rem; }
.token { display: inline-block; margin-right: .6rem; font-variant-numeric: tabular-nums; }
pre { background: var(--card); border-radius: .4rem; padding: .75rem .9rem; font-size: .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.answer { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1rem; margin: 1rem 0;
  background: var(--card); border-radius: .4rem; padding: .75rem .9rem; }
.answer dt { font-weight: 600; }
.answer dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; }
.phases td, .phases th { white-space: nowrap; }
.phases td:last-child { white-space: normal; width: 45%; }
.share { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: 35%; padding-top: .55rem; }
.bar i { display: block; height: .6rem; background: var(--ink); }
.facts { max-width: 60rem; }
section .text { margin: 0; padding: 1rem 0; border-top: 0; font-size: 1rem; }
a { color: var(--s0); }
summary { cursor: pointer; }
@media (max-width: 34rem) {
  body { margin: 1rem auto; padding: 0 1rem; }
  h1 { font-size: 1.35rem; }
  .answer { grid-template-columns: 1fr; }
  .card .context { min-height: 0; }
  .facts th, .facts td { display: block; padding-right: 0; }
  .facts td { padding-bottom: .5rem; }
  .likeliest thead th:last-child { display: none; }
  .likeliest tr { display: grid; grid-template-columns: 1fr auto; padding-top: .4rem; }
  .likeliest td { padding: 0; }
  .likeliest td:last-child { grid-column: span 2; }
}
@media print {
  body { margin: 0; max-width: none; }
  .card, figure, .answer { break-inside: avoid; }
  .segment, .bar i { break-inside: avoid; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
