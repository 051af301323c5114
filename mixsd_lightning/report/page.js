"use strict";
for (const button of document.querySelectorAll("th[aria-sort] button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, isText = column === 0;
    // What is better comes first; names begin with A. A second click turns the order around.
    const first = head.dataset.first || (isText ? "ascending" : "descending");
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const one of table.tHead.rows[0].cells) if (one.hasAttribute("aria-sort")) one.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows, (row) => [row.cells[column].dataset.value, row]);
    // Empty cells stay at the end, whatever the order.
    rows.sort(([one], [two]) => {
      if (one === undefined || two === undefined) return (one === undefined) - (two === undefined);
      return sign * (isText ? one.localeCompare(two, "en", {numeric: true}) : Number(one) - Number(two));
    });
    body.append(...rows.map(([, row]) => row));
  });
}
