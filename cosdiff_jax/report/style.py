"""The report's dress: a contact sheet on paper by day, on a light table by night."""

CSS = """
:root { --paper:#faf9f6; --card:#fff; --ink:#1f1d1a; --soft:#6d675e; --rule:#e3dfd6; --c0:#c2410c;
  --c1:#1d6fa5; --c2:#4d7c2a; --c3:#7e4fa3; --good:#2f7d32; --bad:#b3261e }
@media(prefers-color-scheme:dark){
  :root { --paper:#161513; --card:#201e1b; --ink:#ece8e0; --soft:#a49d91; --rule:#37332d;
    --c0:#fb8c4e; --c1:#6cb6e8; --c2:#9ccc65; --c3:#c39be0; --good:#81c784; --bad:#ef8a80 }
}
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55
  system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK KR",sans-serif }
main { max-width:1120px; margin:0 auto; padding:48px 24px 80px }
h1,h2,h3 { font-family:"Iowan Old Style","Palatino Linotype",Palatino,Georgia,"Noto Serif",serif;
  font-weight:600; line-height:1.2; text-wrap:balance }
h1 { font-size:clamp(1.8rem,5vw,2.8rem); margin:0 0 .5em; letter-spacing:-.01em }
h2 { font-size:1.45rem; margin:0 0 .6em }
.lead { font-size:1.06rem; max-width:70ch; margin:0; color:var(--ink) }
section { margin-top:56px; border-top:1px solid var(--rule); padding-top:24px }
.note,small { color:var(--soft); font-size:.84rem }
small { display:block; font-weight:400; line-height:1.4 }
.note { margin:.4em 0 1.2em }
table { width:100%; border-collapse:collapse }
th,td { text-align:left; padding:12px 14px 12px 0; border-bottom:1px solid var(--rule);
  vertical-align:top }
thead th { font-size:.84rem; font-weight:500; color:var(--soft); padding-top:0 }
tbody th { font-weight:600 }
.n { width:128px; text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap;
  padding-right:22px }
td.n { font-size:1.08rem }
td.after { font-weight:700 }
.wish { color:var(--ink); opacity:.8 }
.wish b { color:var(--c1); font-size:1rem }
.strip { white-space:nowrap; width:250px }
.strip svg { width:150px; height:22px; vertical-align:-5px; margin-right:8px }
.strip span { font-size:.84rem }
.better { color:var(--good) }
.worse { color:var(--bad) }
.unchanged,.unsure { color:var(--soft) }
.rule { stroke:var(--rule); fill:none }
.truth { stroke:var(--c1); stroke-width:2.5 }
.move { stroke:var(--c0); stroke-width:2 }
.was { fill:var(--paper); stroke:var(--c0); stroke-width:2 }
.is { fill:var(--c0); stroke:var(--c0); stroke-width:2 }
.dot,.tick { display:inline-block; vertical-align:-1px; margin:0 2px 0 12px }
.dot { width:11px; height:11px; border-radius:50%; background:var(--c0); border:2px solid
  var(--c0) }
.dot.hollow { background:none; margin-left:0 }
.tick { width:3px; height:14px; background:var(--c1); vertical-align:-2px }
article { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:16px
  18px 18px; margin:0 0 18px }
h3 { font-size:1.1rem; margin:0 0 12px; overflow-wrap:anywhere }
h3 i { font-style:normal; color:var(--soft); font-size:.84rem; margin-right:.7em;
  font-variant-numeric:tabular-nums }
h4 { font-size:.84rem; font-weight:500; color:var(--soft); margin:0 0 6px }
.groups { display:grid; grid-template-columns:repeat(2,1fr); gap:22px }
.groups.n3 { grid-template-columns:repeat(3,1fr) }
.sheet { display:grid; grid-template-columns:repeat(4,1fr); gap:3px }
.sheet img { display:block; width:100%; height:auto; background:var(--rule); border-radius:2px }
.pixels { image-rendering:pixelated }
.curves { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));
  gap:18px }
.curve { margin:0; background:var(--card); border:1px solid var(--rule); border-radius:10px;
  padding:12px 14px }
.curve svg { display:block; width:100%; height:auto; margin-top:4px }
.curve text { font-size:10.5px; fill:var(--soft); font-variant-numeric:tabular-nums }
.raw,.mean { fill:none; stroke-linejoin:round }
.raw { stroke-width:.8; opacity:.32 }
.mean { stroke-width:2 }
.key { font-size:.84rem; color:var(--soft); min-height:1.3em }
.key span { margin-right:14px; white-space:nowrap }
.key b { color:var(--ink); font-weight:600; font-variant-numeric:tabular-nums }
.key i { display:inline-block; width:10px; height:10px; border-radius:3px; margin-right:6px }
.wide { overflow-x:auto }
.many .n { width:auto; min-width:104px }
.many thead th { white-space:normal; overflow-wrap:anywhere }
.many tbody th { min-width:200px }
.many .n small { font-variant-numeric:tabular-nums }
.arrow { color:var(--c1); font-weight:600 }
.groups.many { grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr)) }
.drawn { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));
  gap:18px }
.wide + .drawn { margin-top:18px }
.drawn figure { margin:0; background:var(--card); border:1px solid var(--rule);
  border-radius:10px; padding:12px 14px }
.drawn figcaption { font-weight:600; margin-bottom:6px }
.drawn svg { display:block; width:100%; height:auto }
dl { display:grid; grid-template-columns:minmax(110px,max-content) 1fr; gap:6px 22px; margin:0 0
  18px }
dt { color:var(--soft) }
dd { margin:0; overflow-wrap:anywhere }
summary { cursor:pointer; padding:6px 0 }
pre { font-size:.8rem; line-height:1.45; overflow:auto; background:var(--card); border:1px solid
  var(--rule); border-radius:10px; padding:14px; max-height:60vh }
@media(max-width:720px){
  main { padding:28px 16px 56px }
  section { margin-top:40px }
  thead { display:none }
  tr { display:grid; grid-template-columns:repeat(auto-fill,minmax(92px,1fr)); gap:2px 8px;
    padding:14px 0;
    border-bottom:1px solid var(--rule) }
  th,td { border:0; padding:0 }
  tbody th,.strip { grid-column:1/-1 }
  .n { width:auto; text-align:left; padding:6px 0 }
  td.n::before { content:attr(data-of); display:block; font-size:.76rem; font-weight:400;
    color:var(--soft); white-space:normal; line-height:1.2 }
  .strip { width:auto }
  .many tr { grid-template-columns:repeat(auto-fill,minmax(128px,1fr)) }
  .many .n,.many tbody th { min-width:0 }
  .many .n { white-space:normal }
  .groups,.groups.n3 { grid-template-columns:repeat(2,1fr); gap:14px 12px }
  .sheet { grid-template-columns:repeat(2,1fr) }
  .group:nth-child(3) { grid-column:1/-1 }
  .group:nth-child(3) .sheet { grid-template-columns:repeat(4,1fr) }
  article { padding:14px }
  dl { grid-template-columns:1fr; gap:0 }
  dd { margin-bottom:10px }
}
@media print{
  body { background:#fff }
  article,.curve { break-inside:avoid }
}
"""
