"use strict";
// One pair at a time; answers live in `state` and are saved to localStorage where the browser allows it.
const study = JSON.parse(document.getElementById("study").textContent);
const byId = (id) => document.getElementById(id);
const CHOICES = [["left", "A"], ["right", "B"], ["tie", "tie"]];
const SLOT = "study-" + study.study;
let state = {rater: "", at: 0, votes: {}};
let active = 0, since = 0;

function load() {
  try {
    const saved = JSON.parse(localStorage.getItem(SLOT));
    if (saved && typeof saved.votes === "object" && Number.isInteger(saved.at)) state = saved;
  } catch { byId("storage").textContent = "This browser keeps nothing for files opened from disk: finish in one sitting."; }
  if (!(state.at >= 0 && state.at < study.items.length)) state.at = 0;
}
function save() {
  try { localStorage.setItem(SLOT, JSON.stringify(state)); } catch { /* told at the start */ }
}
function show(id) {
  for (const name of ["start", "ask", "end"]) byId(name).hidden = name !== id;
}
function item() { return study.items[state.at]; }
function answers(id) { return state.votes[id] || (state.votes[id] = {}); }
function done(id) { return study.criteria.every((c) => state.votes[id] && state.votes[id][c.name]); }
function answered() { return study.items.filter((i) => done(i.id)).length; }

function build() {
  study.criteria.forEach((criterion, index) => {
    const row = document.createElement("div"), text = document.createElement("span"), group = document.createElement("div");
    row.className = "criterion";
    text.textContent = criterion.question;
    group.className = "choices";
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", criterion.question);
    for (const [value, label] of CHOICES) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.dataset.choice = value;
      button.addEventListener("click", () => { active = index; vote(value); });
      group.append(button);
    }
    row.append(text, group);
    byId("criteria").append(row);
  });
}
function picture(id, name) {
  const image = byId(id);
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 200);
  image.src = study.images[name];
}
function open() {
  show("ask");
  byId("prompt").textContent = item().prompt;
  byId("prompt").scrollTop = 0;
  picture("left", item().left);
  picture("right", item().right);
  const open = study.criteria.findIndex((c) => !answers(item().id)[c.name]);
  active = open < 0 ? study.criteria.length : open;
  since = performance.now();
  paint();
}
function paint() {
  const given = answers(item().id);
  [...byId("criteria").children].forEach((row, index) => {
    row.classList.toggle("active", index === active);
    const vote = given[study.criteria[index].name];
    for (const button of row.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Boolean(vote) && vote.choice === button.dataset.choice));
  });
  byId("progress").max = study.items.length;
  byId("progress").value = answered();
  byId("count").textContent = `pair ${state.at + 1} of ${study.items.length}, ${answered()} answered`;
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
function move(step) {
  const to = state.at + step;
  if (to < 0) return;
  if (to >= study.items.length) return finish();
  state.at = to;
  save();
  open();
}
function result() {
  const votes = [];
  for (const shown of study.items)
    for (const criterion of study.criteria) {
      const given = (state.votes[shown.id] || {})[criterion.name];
      if (given) votes.push({item: shown.id, criterion: criterion.name, ...given});
    }
  return JSON.stringify({schema: 1, study: study.study, rater: state.rater, votes}, null, 1);
}
function finish() {
  const missing = study.items.length - answered();
  byId("complete").textContent = missing
    ? `${missing} of ${study.items.length} pairs still lack an answer. You can go back to them, or save what you have.`
    : "Every pair is answered. Save the file and send it to the person who asked you.";
  byId("copy").value = result();
  show("end");
  byId("download").focus();
}
function download() {
  const link = document.createElement("a"), address = URL.createObjectURL(new Blob([result()], {type: "application/json"}));
  link.href = address;
  link.download = "votes.json";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
function begin() {
  const name = byId("rater").value.trim();
  if (!/^[\p{L}\p{N}_][\p{L}\p{N}_.@-]{0,63}$/u.test(name)) {
    byId("start-problem").textContent = "Please give a name or code of letters, digits, . _ @ or -.";
    return byId("rater").focus();
  }
  state.rater = name;
  save();
  document.activeElement.blur();
  open();
}
function key(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (!byId("start").hidden) { if (event.key === "Enter" && event.target.id === "rater") begin(); return; }
  if (byId("ask").hidden) return;
  const number = ["1", "2", "3"].indexOf(event.key), last = study.criteria.length - 1;
  if (number >= 0) { if (!event.repeat) vote(CHOICES[number][0]); }
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "ArrowUp") { active = Math.max(active - 1, 0); paint(); }
  else if (event.key === "ArrowDown") { active = Math.min(active + 1, last); paint(); }
  else return;
  event.preventDefault();
}
load();
build();
byId("rater").value = state.rater;
if (state.rater) byId("begin").textContent = "Go on";
document.addEventListener("keydown", key);
byId("begin").addEventListener("click", begin);
byId("back").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("finish").addEventListener("click", finish);
byId("resume").addEventListener("click", () => {
  const first = study.items.findIndex((shown) => !done(shown.id));
  if (first >= 0) state.at = first;
  open();
});
byId("download").addEventListener("click", download);
byId("rater").focus();
