// Pictures. A click or Enter enlarges; holding one of several (mouse, finger, Space) shows the next one in its place.
const HOLD = 200; // milliseconds from which on a press is no click
const large = document.getElementById("large"), byId = (id) => document.getElementById(id);
let held = null, timer = 0, strips = [], at = 0, which = 0, turn = 0;

function pictures(strip) {
  return [...strip.querySelectorAll("img")];
}
function several(strip) { // pictures of one thing, which have labels; others only lie in one row
  return strip.closest(".pairs") ? pictures(strip) : [];
}
function swap(image, label, other) {
  release();
  held = {image, label, src: image.src, text: label?.textContent};
  image.src = other.src;
  if (label) label.textContent = other.alt;
  image.classList.add("flipped");
}
function release() {
  clearTimeout(timer);
  if (!held) return;
  held.image.src = held.src;
  if (held.label) held.label.textContent = held.text;
  held.image.classList.remove("flipped");
  held = null;
}
function flip(strip, index, to = index + 1) {
  const all = several(strip);
  if (all.length > 1) swap(all[index], all[index].parentNode.querySelector("bdi"), all[to % all.length]);
  return all.length > 1;
}
function flipLarge() {
  const all = several(strips[at]);
  if (all.length > 1) swap(large.querySelector("img"), byId("which"), all[(which + 1) % all.length]);
}
function show(index, picture = 0) {
  release();
  at = (index + strips.length) % strips.length;
  const all = pictures(strips[at]), image = large.querySelector("img");
  which = (picture + all.length) % all.length;
  image.src = all[which].src;
  image.alt = byId("which").textContent = several(strips[at]).length > 1 ? all[which].alt : "";
  image.classList.toggle("small", all[which].classList.contains("small"));
  byId("place").textContent = `${at + 1} of ${strips.length}`;
  byId("caption").textContent = strips[at].parentNode.querySelector("figcaption").textContent;
  byId("flip").hidden = several(strips[at]).length < 2;
}
function enlarge(strip, picture) {
  strips = [...strip.closest("ul").querySelectorAll("li:not([hidden]) .strip")];
  show(strips.indexOf(strip), picture);
  large.showModal();
  byId(byId("flip").hidden ? "close" : "flip").focus();
}
function leave() {
  large.close();
  strips[at].focus();
}
// What is pressed long enough flips; a shorter press is a click.
function pressed(element, flipping, click) {
  let long = false;
  element.addEventListener("pointerdown", (event) => {
    long = false;
    if (event.button === 0) timer = setTimeout(() => { long = flipping(event.target); }, HOLD);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) element.addEventListener(end, release);
  element.addEventListener("contextmenu", (event) => { if (held) event.preventDefault(); });
  element.addEventListener("dragstart", (event) => event.preventDefault());
  element.addEventListener("click", (event) => { if (!long && click) click(event.target); });
  element.addEventListener("blur", release);
}
for (const strip of document.querySelectorAll(".strip")) {
  const caption = strip.parentNode.querySelector("figcaption").textContent, all = pictures(strip);
  const names = several(strip).length > 1 ? `${all.map((image) => image.alt).join(", ")}: ` : "";
  const attributes = {role: "button", tabindex: 0, "aria-haspopup": "dialog", "aria-label": `Enlarge ${names}${caption}`};
  for (const [name, value] of Object.entries(attributes)) strip.setAttribute(name, value);
  pressed(strip, (image) => flip(strip, Math.max(0, all.indexOf(image))),
          (image) => enlarge(strip, Math.max(0, all.indexOf(image))));
  strip.addEventListener("keydown", (event) => {
    if (event.key === "Enter") enlarge(strip, 0);
    if (event.key === " " && !event.repeat) flip(strip, 0, 1 + turn++ % Math.max(1, all.length - 1));
    if (event.key === "Enter" || event.key === " ") event.preventDefault();
  });
  strip.addEventListener("keyup", release);
}
if (large) {
  pressed(large.querySelector("img"), flipLarge);
  byId("flip").addEventListener("pointerdown", flipLarge);
  for (const end of ["pointerup", "pointercancel", "pointerleave", "blur"]) byId("flip").addEventListener(end, release);
  large.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], other = {ArrowUp: -1, ArrowDown: 1}[event.key];
    if (step) show(at + step);
    else if (other && event.target.id !== "caption") show(at, which + other);
    else if (event.key === "Escape") leave();
    else if ([" ", "Enter"].includes(event.key) && event.target.id === "flip") event.repeat || flipLarge();
    else return;
    event.preventDefault();
  });
  large.addEventListener("keyup", release);
  for (const button of large.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => show(at + Number(button.dataset.step)));
  }
  byId("close").addEventListener("click", leave);
  large.addEventListener("click", (event) => { if (event.target === large) leave(); });
  large.addEventListener("close", release);
  seek();
}
