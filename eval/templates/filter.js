// Hides pictures and texts whose caption lacks a word of the filter; signs that only steer the direction count nothing.
function folded(text) {
  return text.normalize("NFKC").replace(/[\p{Cf}\ufe0f]/gu, "").toLowerCase();
}
function seek() {
  const field = document.getElementById("filter"), found = document.getElementById("found");
  const items = [...document.querySelectorAll(".gallery > li, .texts > li")];
  const captions = items.map((item) => folded(item.querySelector("figcaption, .hostile").textContent));
  let timer = 0;
  function apply() {
    const words = folded(field.value).split(/\s+/).filter(Boolean);
    let count = 0;
    items.forEach((item, i) => {
      item.hidden = !words.every((word) => captions[i].includes(word));
      count += !item.hidden;
    });
    found.textContent = words.length ? `${count} of ${items.length}` : "";
  }
  field.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 150); });
  document.getElementById("seek").hidden = false;
  apply();
}
