"use strict";
// Sorts a table by the column whose heading is pressed: once up, again down; cells without a value stay last.
function value(row, column) {
  const cell = row.cells[column];
  if (cell.classList.contains("absent")) return null;
  return cell.dataset.key !== undefined ? Number(cell.dataset.key) : cell.textContent.trim();
}
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), undefined, {numeric: true});
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, table = heading.closest("table"), body = table.tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = heading.cellIndex;
    const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), down ? -1 : 1));
    body.append(...rows);
  });
}
