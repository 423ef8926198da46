// Filter and sort the scoreboard in place. Without JavaScript all of it is there.
document.addEventListener("DOMContentLoaded", () => {
  const tables = [...document.querySelectorAll("table.scoreboard")];
  if (tables.length === 0) return;
  const VERDICTS = ["holds", "does not hold", "inconclusive", "planned"];
  const COLUMNS = ["verdict", "paper", "claim", "ours", "chapter"];

  // What a row is, read from the row itself.
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows].map((row, place) => {
    const text = (cell) => row.cells[cell].innerText.trim();
    const ours = text(3);
    const first = (words) => {
      const found = words.match(/[-−]?\d[\d,]*\.?\d*/);
      return found ? Number(found[0].replace("−", "-").replaceAll(",", "")) : Infinity;
    };
    const verdict = row.querySelector(".verdict").textContent.trim();
    const title = text(1);
    return {
      row, place,
      verdict,
      part: (title.match(/\bpart ([IVX]+)\s*$/) || ["", "beyond the papers"])[1],
      source: /\bstored\b/.test(ours) ? "stored"
        : /this machine/.test(ours) ? "this machine" : "not measured",
      words: row.innerText.toLowerCase(),
      keys: {
        verdict: VERDICTS.indexOf(verdict),
        paper: /^\d/.test(title) ? first(title) : Infinity,
        claim: text(2).toLowerCase(),
        ours: ours.startsWith("–") ? Infinity : first(ours),
        chapter: text(4) === "–" ? "\uffff" : text(4).toLowerCase(),
      },
    };
  }));

  const form = document.createElement("form");
  form.className = "scoreboard-controls";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter and sort the scoreboard");
  const control = (label, element, name) => {
    const wrap = document.createElement("label");
    wrap.append(label + " ", element);
    element.name = name;
    element.setAttribute("aria-label", label); // without the options of a select
    form.append(wrap);
    return element;
  };
  const choice = (label, name, values, all) => {
    const select = document.createElement("select");
    for (const value of [all, ...values]) select.add(new Option(value));
    return control(label, select, name);
  };
  const distinct = (key) => [...new Set(rows.map((r) => r[key]))].sort();
  const search = control("Find", Object.assign(document.createElement("input"),
    { type: "search", placeholder: "words" }), "words");
  const filters = {
    verdict: choice("Verdict", "verdict",
      VERDICTS.filter((v) => rows.some((r) => r.verdict === v)), "all"),
    part: choice("Part", "part", distinct("part"), "all"),
    source: choice("Source", "source", distinct("source"), "all"),
  };
  const order = choice("Sort by", "sort", COLUMNS, "chapters first");
  const reset = Object.assign(document.createElement("button"),
    { type: "reset", textContent: "Reset" });
  const count = document.createElement("output");
  count.setAttribute("aria-live", "polite");
  form.append(reset, count);
  tables[0].closest(".pst-scrollable-table-container, .table-wrapper, table")
    .before(form);

  let direction = 1;
  const compare = (a, b) => {
    const [x, y] = [a.keys[order.value], b.keys[order.value]];
    if (x === undefined || x === y) return a.place - b.place;
    if (x === Infinity || y === Infinity) return x === Infinity ? 1 : -1; // at the end
    return (x < y ? -1 : 1) * direction;
  };

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const r of rows) {
      const fits = words.every((word) => r.words.includes(word))
        && Object.entries(filters).every(([key, select]) =>
          select.selectedIndex === 0 || select.value === r[key]);
      r.row.hidden = !fits;
      shown += fits;
    }
    for (const table of tables) {
      const own = rows.filter((r) => table.contains(r.row)).sort(compare);
      table.tBodies[0].append(...own.map((r) => r.row));
      [...table.tHead.rows[0].cells].forEach((head, i) => {
        const sorted = order.value === COLUMNS[i];
        head.setAttribute("aria-sort",
          sorted ? (direction === 1 ? "ascending" : "descending") : "none");
      });
    }
    count.value = `${shown} of ${rows.length} rows`;
  };

  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => {
        direction = order.value === COLUMNS[i] ? -direction : 1;
        order.value = COLUMNS[i];
        show();
      });
      head.append(button);
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => { direction = 1; setTimeout(show); });
  order.addEventListener("change", () => { direction = 1; });
  form.addEventListener("input", show);
  show();
});
