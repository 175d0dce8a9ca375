"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tables: a click on a title sorts by it, one more the other way; cells without a number stay last.
for (const table of all("table")) {
  const body = table.tBodies[0];
  all("thead button", table).forEach((button, column) => button.addEventListener("click", () => {
    const head = button.closest("th");
    // Numbers from the largest, names from A.
    const isNumber = all("tr", body).some((row) => row.cells[column].dataset.value !== undefined);
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : isNumber;
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const rows = all("tr", body).sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (isNumber && (x === undefined || y === undefined)) return (x === undefined) - (y === undefined);
      const order = isNumber ? x - y : a.cells[column].textContent.trim().localeCompare(b.cells[column].textContent.trim());
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}

// Charts: one of each group is seen, drawn when it is picked.
const views = new Map();
const told = ["run", "method", "step", "pairs", "mean", "lowest", "highest", "low", "high"];
const tooltip = {
  theme: "page",
  disableDefaultStyle: true,
  formatTooltip: (point, html) => {
    const row = (key) => `<tr><td class="key">${key}</td><td class="value">${html(point[key])}</td></tr>`;
    return `<table>${told.filter((key) => key in point).map(row).join("")}</table>`;
  },
};
const hidden = (key) => all(`fieldset[data-key=${key}] input:not(:checked)`).map((input) => input.value);
const update = (view) => view.signal("hiddenMethods", hidden("method")).signal("hiddenRuns", hidden("run")).runAsync();
for (const group of all("[data-charts]")) {
  const draw = async (index) => {
    views.get(group)?.finalize();
    const spec = data.charts[group.dataset.charts][index];
    const actions = { export: true, source: false, compiled: false, editor: false };
    const result = await vegaEmbed(group.querySelector(".chart"), spec, { renderer: "svg", actions, tooltip });
    views.set(group, result.view);
    await update(result.view);
  };
  all("input", group).forEach((input) => input.addEventListener("change", () => draw(input.value)));
  draw(0);
}

// Switches: rows, pictures and lines of what is off are hidden.
const filter = () => {
  const off = Object.fromEntries(all("fieldset[data-key]").map((set) => [set.dataset.key, new Set(hidden(set.dataset.key))]));
  for (const element of all("tbody tr, .gallery")) {
    element.hidden = Object.entries(off).some(([key, values]) => values.has(element.dataset[key]));
  }
  views.forEach(update);
};
for (const set of all("fieldset[data-key]")) {
  const boxes = all("input", set);
  const check = (value) => { boxes.forEach((box) => { box.checked = value; }); filter(); };
  set.addEventListener("change", filter);
  set.querySelector(".all")?.addEventListener("click", () => check(true));
  set.querySelector(".none")?.addEventListener("click", () => check(false));
}
filter();

// Pictures: an image opens with its views and the real images next to it.
const viewer = document.getElementById("viewer");
let opened = null;
const figure = (src, alt, caption) => {
  const made = document.createElement("figure");
  const image = Object.assign(document.createElement("img"), { src, alt });
  made.append(image);
  if (caption) made.append(Object.assign(document.createElement("figcaption"), { textContent: caption }));
  return made;
};
const open = (thumb) => {
  opened = thumb;
  const image = thumb.querySelector("img");
  document.getElementById("viewer-title").textContent = thumb.dataset.title;
  const parts = [figure(image.src, image.alt)];
  const groups = data.galleries[thumb.dataset.gallery][thumb.dataset.kind][thumb.dataset.index];
  for (const [name, pictures] of Object.entries(groups)) {
    const strip = Object.assign(document.createElement("div"), { className: "strip" });
    strip.append(...pictures.map((picture) => figure(picture.src, picture.alt, picture.caption)));
    parts.push(Object.assign(document.createElement("h3"), { textContent: name }), strip);
  }
  document.getElementById("viewer-body").replaceChildren(...parts);
  if (!viewer.open) viewer.showModal();
};
const go = (step) => {
  const thumbs = all(".thumb", opened.parentElement);
  open(thumbs[(thumbs.indexOf(opened) + step + thumbs.length) % thumbs.length]);
};
if (viewer) {
  all(".thumb").forEach((thumb) => thumb.addEventListener("click", () => open(thumb)));
  document.getElementById("previous").addEventListener("click", () => go(-1));
  document.getElementById("next").addEventListener("click", () => go(1));
  document.getElementById("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
  // Where one has arrived, not where one has begun.
  viewer.addEventListener("close", () => opened.focus());
}
