"""How the HTML page looks, by day and by night, and the sorting of its tables."""

STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #22262b; --soft: #646b74; --line: #dfe2e6; --paper: #ffffff; --tint: #f5f6f8;
  --accent: #2f6fb6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #dfe3e8; --soft: #9aa3ad; --line: #343a42; --paper: #15181c; --tint: #1e2227;
    --accent: #7db4ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem clamp(1rem, 4vw, 3rem) 5rem; max-width: 76rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
}
h1 { margin: 0 0 .4rem; font-size: 2rem; line-height: 1.2; font-weight: 650; }
h2 {
  margin: 3.5rem 0 1rem; padding-top: 1.2rem; border-top: 1px solid var(--line);
  font-size: 1.4rem; font-weight: 620;
}
h3 { margin: 2rem 0 .6rem; font-size: 1.05rem; font-weight: 620; }
h1, h2, h3, p, td { overflow-wrap: break-word; }
p { margin: .5rem 0; max-width: 50rem; }
.lead { color: var(--soft); font-size: 1.08rem; }
.finding { padding-left: .9rem; border-left: 3px solid var(--accent); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 1.2rem 0 0; padding: 0; }
nav li { list-style: none; }
figure { margin: 1.4rem 0 2rem; }
figcaption { margin-top: .6rem; max-width: 56rem; color: var(--soft); font-size: .86rem; }
.drawing { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 42rem; height: auto; }
svg text { font-family: inherit; }
.scroll {
  overflow: auto; max-height: 44rem; border: 1px solid var(--line); border-radius: 8px;
  /* a shade at the lower edge while there is more below */
  background:
    linear-gradient(var(--paper), var(--paper)) bottom / 100% 1.2rem no-repeat local,
    linear-gradient(transparent, var(--line)) bottom / 100% 1.2rem no-repeat;
}
table {
  width: 100%; border-collapse: separate; border-spacing: 0;
  font-size: .88rem; font-variant-numeric: tabular-nums;
}
th {
  position: sticky; top: 0; padding: 0; background: var(--tint);
  border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom;
}
th button {
  width: 100%; padding: .5rem .8rem; border: 0; background: none; color: inherit;
  font: inherit; font-weight: 600; text-align: inherit; cursor: pointer;
}
th button:hover, th button:focus-visible { color: var(--accent); }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
td {
  padding: .4rem .8rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: baseline; white-space: nowrap;
}
td.text { text-align: left; white-space: normal; min-width: 5rem; }
th.text { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover td { background: var(--tint); }
td small { display: block; color: var(--soft); font-size: .8rem; }
@media print { .scroll { max-height: none; overflow: visible; } }
"""

SCRIPT = """\
for (const head of document.querySelectorAll("th")) {
  head.firstChild.addEventListener("click", () => {
    const row = head.parentNode, body = row.parentNode.nextElementSibling;
    const place = [...row.children].indexOf(head);
    const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    const key = line => line.children[place].dataset.value;
    const text = line => line.children[place].textContent;
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === undefined && y === undefined) return sign * text(a).localeCompare(text(b));
      if (x === undefined || y === undefined) return x === undefined ? 1 : -1;
      return sign * (x - y);
    };
    body.append(...[...body.children].sort(order));
  });
}
"""
