"""The look of the pages and the one small script in them; both are written into every page."""

STYLE = """
:root { --paper: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5c6878; --line: #dfe3e9;
  --accent: #1f6feb; --gap: 14px; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12151a; --card: #1b2027; --ink: #e6eaf0; --soft: #98a4b3; --line: #2c343f;
    --accent: #6ea8ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
body > header { padding: 22px clamp(14px, 3vw, 40px) 18px; background: var(--card);
  border-bottom: 1px solid var(--line); }
main { padding: 4px clamp(14px, 3vw, 40px) 48px; }
h1 { margin: 0; font-size: 1.45rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 30px 0 10px; font-size: 1.08rem; overflow-wrap: anywhere; }
p { max-width: 75ch; margin: 12px 0; color: var(--soft); overflow-wrap: anywhere; }
.row { display: grid; gap: var(--gap);
  grid-template-columns: repeat(auto-fit, minmax(min(100%, calc(var(--width) * .6)), 1fr));
  max-width: calc(var(--count) * (var(--width) + var(--gap)) - var(--gap)); }
figure { margin: 0; overflow: hidden; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
figure.wide { width: fit-content; max-width: 100%; margin: 18px 0; }
figure a { display: block; outline-offset: -3px; }
figure a:focus-visible { outline: 3px solid var(--accent); }
figure img { display: block; width: 100%; height: auto; cursor: zoom-in; }
figure.wide img { width: auto; max-width: 100%; }
figcaption { padding: 7px 12px; font-size: .88rem; color: var(--soft); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { padding: 7px 14px; text-align: left; border-bottom: 1px solid var(--line); }
th { font-size: .85rem; color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody tr:last-child td { border-bottom: 0; }
dialog { width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; padding: 0;
  border: 0; overflow: hidden; background: #0b0d10; color: #dfe5ec; }
dialog[open] { display: grid; grid-template-rows: minmax(0, 1fr) auto; }
dialog div { overflow: auto; display: grid; place-items: safe center; }
dialog img { max-width: 100%; max-height: 100%; cursor: zoom-in; }
dialog.pixels img { max-width: none; max-height: none; cursor: zoom-out; }
dialog p { max-width: none; margin: 0; padding: 9px 16px; font-size: .88rem; color: inherit;
  display: flex; flex-wrap: wrap; gap: 4px 24px; justify-content: space-between; }
dialog small { color: #93a0af; }
""".strip()

# A click on a picture opens it over the page; the arrow keys leaf through all pictures in place,
# which shows differences between label, synthesised and real picture. The page waits with its
# refresh meanwhile.
SCRIPT = """
"use strict";
const links = [...document.querySelectorAll("figure a")];
const viewer = document.createElement("dialog");
viewer.innerHTML = "<div><img></div><p><span></span><small>\\u2190 \\u2192 other pictures, " +
  "click: pixels 1:1, Esc: close</small></p>";
document.body.append(viewer);
const [frame, picture, title] = ["div", "img", "span"].map((name) => viewer.querySelector(name));
let current = 0;
function show(index) {
  current = (index + links.length) % links.length;
  const small = links[current].querySelector("img");
  const heading = links[current].closest("section")?.querySelector("h2")?.textContent;
  picture.src = small.src;
  picture.alt = small.alt;
  title.textContent = [heading, small.alt].filter(Boolean).join(" \\u2014 ");
}
links.forEach((link, index) => link.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  viewer.classList.remove("pixels");
  show(index);
  viewer.showModal();
}));
frame.addEventListener("click", (event) => {
  if (event.target === picture) viewer.classList.toggle("pixels"); else viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  show(current + step);
});
const refresh = Number(document.body.dataset.refresh);
if (refresh) setInterval(() => { if (!viewer.open) location.reload(); }, refresh * 1000);
""".strip()
