"use strict";
// One item at a time; answers live in `state` and are saved to localStorage where the browser allows it.
const study = JSON.parse(document.getElementById("study").textContent);
const byId = (id) => document.getElementById(id);
const pairwise = study.mode === "pairwise";
const WORDS = {left: "A", right: "B", tie: "tie", both_bad: "both bad"};
const SIDES = pairwise ? ["left", "right"] : ["left"];
const thing = pairwise ? "pair" : "picture";
const asked = new URLSearchParams(location.search);
const panel = Object.fromEntries(["PROLIFIC_PID", "STUDY_ID", "SESSION_ID"].map((name) => [name, asked.get(name) || ""]));
const SLOT = ["study", study.study, study.block, panel.PROLIFIC_PID].join("-");
const NAME = /^[\p{L}\p{N}_][\p{L}\p{N}_.@-]{0,63}$/u;
const fresh = () => ({rater: "", at: 0, votes: {}, tags: {}, started: ""});
let state = fresh();
let active = 0, since = 0, hidden = 0, kept = true;

function make(kind, text, attributes) {
  const element = document.createElement(kind);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  return element;
}
function load() {
  try {
    const saved = JSON.parse(localStorage.getItem(SLOT));
    if (saved && typeof saved.votes === "object" && typeof saved.tags === "object") state = {...fresh(), ...saved};
    localStorage.setItem(SLOT, JSON.stringify(state));
  } catch { kept = false; byId("storage").textContent = "This browser keeps nothing for this page: finish in one sitting, or save your answers and load them again."; }
  if (!(Number.isInteger(state.at) && state.at >= 0 && state.at < study.items.length)) state.at = 0;
}
function save() {
  try { localStorage.setItem(SLOT, JSON.stringify(state)); } catch { kept = false; }
}
function show(id) {
  for (const name of ["start", "ask", "end"]) byId(name).hidden = name !== id;
}
const item = () => study.items[state.at];
const answers = (id) => state.votes[id] || (state.votes[id] = {});
const done = (id) => study.criteria.every((c) => state.votes[id] && state.votes[id][c.name]);
const answered = () => study.items.filter((i) => done(i.id)).length;

function build() {
  byId("criteria").classList.toggle("likert", !pairwise);
  study.criteria.forEach((criterion, index) => {
    const row = make("div", "", {class: "criterion"}), text = make("span", criterion.question);
    const group = make("div", "", {class: "choices", role: "group", "aria-label": criterion.question});
    if (criterion.anchors.length) text.append(make("small", `1 ${criterion.anchors[0]} … 5 ${criterion.anchors[4]}`));
    study.choices.forEach((value, place) => {
      const button = make("button", WORDS[value] || value, {type: "button", title: criterion.anchors[place] || ""});
      button.dataset.choice = value;
      button.addEventListener("click", () => { active = index; vote(value); });
      group.append(button);
    });
    row.append(text, group);
    byId("criteria").append(row);
  });
  for (const side of SIDES)
    for (const tag of study.tags) {
      const button = make("button", tag, {type: "button", "aria-pressed": "false"});
      button.dataset.tag = tag;
      button.addEventListener("click", () => toggle(side, tag));
      byId("tags-" + side).append(button);
    }
}
function picture(image, name) {
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 200);
  image.src = study.images[name];
}
function open() {
  show("ask");
  byId("prompt").textContent = item().prompt;
  byId("prompt").scrollTop = 0;
  for (const side of SIDES) picture(byId(side), item()[side]);
  const open = study.criteria.findIndex((c) => !answers(item().id)[c.name]);
  active = open < 0 ? study.criteria.length : open;
  since = performance.now();
  paint();
}
function paint() {
  const given = answers(item().id), marked = state.tags[item().id] || {};
  [...byId("criteria").children].forEach((row, index) => {
    row.classList.toggle("active", index === active);
    const vote = given[study.criteria[index].name];
    for (const button of row.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Boolean(vote) && vote.choice === button.dataset.choice));
  });
  for (const side of SIDES)
    for (const button of byId("tags-" + side).children)
      button.setAttribute("aria-pressed", String((marked[side] || []).includes(button.dataset.tag)));
  byId("progress").max = study.items.length;
  byId("progress").value = answered();
  byId("count").textContent = `${thing} ${state.at + 1} of ${study.items.length}, ${answered()} answered`;
  byId("back").disabled = state.at === 0;
  byId("next").classList.toggle("ready", done(item().id));
}
function vote(choice) {
  if (active >= study.criteria.length) return;
  const now = performance.now();
  answers(item().id)[study.criteria[active].name] = {choice, rt_ms: Math.round(now - since), at: new Date().toISOString()};
  since = now;
  active += 1;  // past the last question no key answers: a key pressed once too often changes nothing
  save();
  paint();
}
function toggle(side, tag) {
  const marked = state.tags[item().id] || (state.tags[item().id] = {});
  const now = marked[side] || [];
  marked[side] = now.includes(tag) ? now.filter((one) => one !== tag) : [...now, tag];
  save();
  paint();
}
function move(step) {
  const to = state.at + step;
  if (to < 0) return;
  if (to >= study.items.length) return finish();
  state.at = to;
  save();
  open();
}
function result() {
  const votes = [], tags = [];
  for (const shown of study.items) {
    for (const criterion of study.criteria) {
      const given = (state.votes[shown.id] || {})[criterion.name];
      if (given) votes.push({item: shown.id, criterion: criterion.name, ...given});
    }
    for (const side of SIDES) {
      const marked = (state.tags[shown.id] || {})[side] || [];
      if (marked.length) tags.push({item: shown.id, side, tags: marked});
    }
  }
  const about = {schema: study.schema, study: study.study, block: study.block, page: study.page};
  return JSON.stringify({...about, rater: state.rater, started: state.started, panel, votes, tags}, null, 1);
}
function restore(text) {
  const saved = JSON.parse(text);
  if (saved.study !== study.study || saved.block !== study.block) throw new Error("these are answers to another page");
  const known = new Set(study.items.map((i) => i.id));
  state = {...fresh(), rater: String(saved.rater || ""), started: String(saved.started || "")};
  for (const {item: id, criterion, ...given} of saved.votes) if (known.has(id)) answers(id)[criterion] = given;
  for (const {item: id, side, tags} of saved.tags || []) if (known.has(id)) (state.tags[id] || (state.tags[id] = {}))[side] = tags;
  state.at = Math.max(0, study.items.findIndex((shown) => !done(shown.id)));
  save();
  greet();
  byId("storage").textContent = `Loaded: ${answered()} of ${study.items.length} answered.`;
}
function finish() {
  const missing = study.items.length - answered();
  byId("thanks").textContent = missing ? "Not all is answered yet" : "Thank you";
  byId("complete").textContent = missing
    ? `${missing} of ${study.items.length} ${thing}s still lack an answer. You can go back to them, or save what you have.`
    : `Every ${thing} is answered. Save the file and send it to the person who asked you.`;
  byId("code-line").hidden = missing > 0;
  byId("code").textContent = missing ? "" : study.code;
  byId("copy").value = result();
  show("end");
  byId("download").focus();
}
function download() {
  const address = URL.createObjectURL(new Blob([result()], {type: "application/json"}));
  const link = make("a", "", {href: address, download: "votes.json"});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
function begin() {
  const name = byId("rater").value.trim();
  if (!NAME.test(name)) {
    byId("start-problem").textContent = "Please give a name or code of letters, digits, . _ @ or -.";
    return byId("rater").focus();
  }
  state.rater = name;
  state.started = state.started || new Date().toISOString();
  save();
  document.activeElement.blur();
  open();
}
function greet() {
  byId("rater").value = state.rater || panel.PROLIFIC_PID;
  byId("rater").readOnly = Boolean(panel.PROLIFIC_PID);
  byId("begin").textContent = state.rater ? "Go on" : "Begin";
  byId("anew").hidden = !state.rater;
  byId("anew").textContent = "Start anew";
}
function anew() {
  const sure = `Press again to delete the answers of ${state.rater} here`;
  if (byId("anew").textContent !== sure) { byId("anew").textContent = sure; return; }
  state = fresh();
  save();
  greet();
  byId("rater").focus();
}
function zoom(sides) {
  const box = byId("zoom");
  if (box.open) return box.close();
  byId("zoomed").replaceChildren(...sides.map((side) => {
    const image = make("img", "", {alt: "picture " + (WORDS[side] || "")});
    picture(image, item()[side]);
    return image;
  }));
  box.showModal();
}
function key(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (!byId("start").hidden) { if (event.key === "Enter" && event.target.id === "rater") begin(); return; }
  if (byId("ask").hidden) return;
  if (event.key === "z") zoom(SIDES);
  else if (byId("zoom").open) return;
  else if (/^[1-9]$/.test(event.key) && study.choices[event.key - 1]) { if (!event.repeat) vote(study.choices[event.key - 1]); }
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "ArrowUp") { active = Math.max(active - 1, 0); paint(); }
  else if (event.key === "ArrowDown") { active = Math.min(active + 1, study.criteria.length - 1); paint(); }
  else return;
  event.preventDefault();
}
load();
build();
greet();
document.addEventListener("keydown", key);
document.addEventListener("visibilitychange", () => {  // time on another tab is no time of thinking
  if (document.hidden) hidden = performance.now();
  else if (hidden) since += performance.now() - hidden;
});
window.addEventListener("beforeunload", (event) => { if (!kept && answered()) event.preventDefault(); });
byId("begin").addEventListener("click", begin);
byId("anew").addEventListener("click", anew);
byId("back").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("finish").addEventListener("click", finish);
byId("download").addEventListener("click", download);
byId("copy-button").addEventListener("click", () => { byId("copy").select(); document.execCommand("copy"); });
byId("zoom").addEventListener("click", () => byId("zoom").close());
for (const button of document.querySelectorAll(".look")) button.addEventListener("click", () => zoom([button.dataset.side]));
byId("load").addEventListener("change", async (event) => {
  try { restore(await event.target.files[0].text()); } catch (error) { byId("storage").textContent = `Cannot load this file: ${error.message}.`; }
  event.target.value = "";
});
byId("resume").addEventListener("click", () => {
  const first = study.items.findIndex((shown) => !done(shown.id));
  if (first >= 0) state.at = first;
  open();
});
byId("rater").focus();
