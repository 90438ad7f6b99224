"use strict";
const $ = (query, root = document) => root.querySelector(query);
const all = (query, root = document) => [...root.querySelectorAll(query)];
const index = JSON.parse($("#index").textContent);

function show(id) {
  const section = document.getElementById("step-" + id);
  if (!section) return;
  const graph = section.dataset.graph;
  for (const s of all("section[data-graph]")) s.hidden = s !== section;
  for (const s of all(".strip")) s.hidden = s.dataset.graph !== graph;
  for (const t of all("[role=tab]")) t.setAttribute("aria-selected", t.dataset.graph === graph);
  for (const b of all(".step")) b.setAttribute("aria-pressed", b.dataset.to === id);
  history.replaceState(null, "", "#" + id);
}

function move(by) {
  const steps = all(".strip:not([hidden]) .step");
  const at = steps.findIndex((s) => s.getAttribute("aria-pressed") === "true");
  const next = steps[Math.min(Math.max(at + by, 0), steps.length - 1)];
  if (next) { show(next.dataset.to); next.scrollIntoView({ block: "nearest", inline: "nearest" }); }
}

function find(words) {
  const wanted = words.toLowerCase();
  const hits = [];
  for (const e of index) {
    for (let i = 0; i < e.units.length && hits.length < 200; i++) {
      const place = e.module.replace("{}", e.units[i]);
      const text = `${place} ${e.op} ${e.names[i]}`;
      if (text.toLowerCase().includes(wanted)) hits.push({ to: e.to, text: `${e.sign} ${e.op}  ${place}  ${e.names[i]}`, pass: e.pass });
    }
  }
  return hits;
}

function search(words) {
  const list = $("#hits");
  list.replaceChildren();
  list.hidden = words.length < 2;
  if (list.hidden) return;
  const hits = find(words);
  const note = document.createElement("p");
  note.textContent = hits.length ? `${hits.length === 200 ? "the first 200" : hits.length} changed nodes` : "no pass changed a node or module of that name";
  list.append(note);
  for (const hit of hits) {
    const row = document.createElement("button");
    row.textContent = `${hit.pass}  ${hit.text}`;
    row.addEventListener("click", () => { show(hit.to); list.hidden = true; });
    list.append(row);
  }
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("#theme").textContent = name === "dark" ? "Light" : "Dark";
}

theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("#theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
for (const b of all("[data-to]")) b.addEventListener("click", () => show(b.dataset.to));
$("#find").addEventListener("input", (e) => search(e.target.value.trim()));
document.addEventListener("click", (e) => { if (!e.target.closest(".find")) $("#hits").hidden = true; });
document.addEventListener("keydown", (e) => {
  if (e.target.tagName === "INPUT") { if (e.key === "Escape") { e.target.value = ""; search(""); e.target.blur(); } return; }
  if (e.key === "ArrowLeft") move(-1);
  if (e.key === "ArrowRight") move(1);
  if (e.key === "/") { e.preventDefault(); $("#find").focus(); }
});
show(location.hash.slice(1) || document.body.dataset.first);
