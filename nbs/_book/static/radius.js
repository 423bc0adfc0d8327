// The page to play with the radius: curves (curves.js) in, one point of one curve out. The address holds the state.
(function () {
  "use strict";
  const root = document.getElementById("radius-page");
  const MENUS = Object.keys(window.CURVES[0].choices);
  const HEADINGS = { A_M: "A_M, learnt", A_F: "A_F\\S, kept", mean: "mean" };
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 560, HEIGHT = 380, LEFT = 56, RIGHT = 16, TOP = 14, BOTTOM = 48;
  const state = { choices: { ...window.CURVES[0].choices }, place: 0 };

  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function draw(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const sayRadius = (point) => (point.radius === null ? "none" : String(point.radius));
  const sayValue = (value, error) => value.toFixed(2) + (error === null || error === undefined ? "" : ` (${error.toFixed(2)})`);
  const x = (percent) => LEFT + (percent / 100) * (WIDTH - LEFT - RIGHT);
  const y = (percent) => HEIGHT - BOTTOM - (percent / 100) * (HEIGHT - TOP - BOTTOM);
  const matches = (curve, menus) => menus.every((menu) => curve.choices[menu] === state.choices[menu]);

  // Choices are settled from left to right: one that no curve has falls back to the first that some curve has.
  function settle() {
    MENUS.forEach((menu, index) => {
      const before = window.CURVES.filter((curve) => matches(curve, MENUS.slice(0, index)));
      const possible = [...new Set(before.map((curve) => curve.choices[menu]))];
      if (!possible.includes(state.choices[menu])) state.choices[menu] = possible[0];
    });
    const curve = window.CURVES.find((one) => matches(one, MENUS));
    state.place = Math.max(0, Math.min(state.place, curve.points.length - 1));
    return curve;
  }

  function bestPlace(curve) {
    return curve.points.reduce((best, point, place) => (point.mean > curve.points[best].mean ? place : best), 0);
  }

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const menu of MENUS) if (given.has(menu)) state.choices[menu] = given.get(menu);
    const curve = settle();
    const radius = given.get("radius");
    const place = curve.points.findIndex((point) => sayRadius(point) === radius);
    state.place = place >= 0 ? place : bestPlace(curve);
  }

  function writeAddress(curve) {
    const told = new URLSearchParams({ ...state.choices, radius: sayRadius(curve.points[state.place]) });
    history.replaceState(null, "", `#${told}`);
  }

  const form = make("form", { class: "choices" });
  const chart = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "plane" });
  const slider = make("input", { type: "range", min: "0", step: "1", id: "radius-slider" });
  const told = make("output", { for: "radius-slider", id: "radius-value" });
  const numbers = make("table", { class: "numbers" });
  const rows = make("table", { class: "rows" });
  const paper = make("div", { class: "paper" });
  const source = make("p", { class: "source" });

  function fillForm() {
    form.replaceChildren(...MENUS.map((menu, index) => {
      const before = window.CURVES.filter((curve) => matches(curve, MENUS.slice(0, index)));
      const values = [...new Set(before.map((curve) => curve.choices[menu]))];
      const select = make("select", { name: menu }, ...values.map((value) => {
        const option = make("option", { value }, value);
        option.selected = value === state.choices[menu];
        return option;
      }));
      select.disabled = values.length < 2;
      select.addEventListener("change", () => {
        state.choices[menu] = select.value;
        state.place = bestPlace(settle());
        show();
        form.elements[menu].focus();
      });
      return make("label", {}, menu, select);
    }));
  }

  function drawAxes() {
    for (let percent = 0; percent <= 100; percent += 20) {
      chart.append(
        draw("line", { x1: x(percent), x2: x(percent), y1: y(0), y2: y(100), class: "grid" }),
        draw("line", { x1: x(0), x2: x(100), y1: y(percent), y2: y(percent), class: "grid" }),
        draw("text", { x: x(percent), y: y(0) + 18, "text-anchor": "middle" }, percent),
        draw("text", { x: x(0) - 8, y: y(percent) + 4, "text-anchor": "end" }, percent),
      );
    }
    chart.append(
      draw("text", { x: x(50), y: HEIGHT - 8, "text-anchor": "middle" }, "A_F\\S, unmodified facts kept (%)"),
      draw("text", { x: 14, y: y(50), "text-anchor": "middle", transform: `rotate(-90 14 ${y(50)})` }, "A_M, modified facts learnt (%)"),
    );
  }

  function drawCurve(curve) {
    const limited = curve.points.filter((point) => point.radius !== null);
    chart.append(draw("line", { x1: x(curve.before), x2: x(curve.before), y1: y(0), y2: y(100), class: "before" }));
    chart.append(draw("polyline", { points: curve.points.map((point) => `${x(point.A_F)},${y(point.A_M)}`).join(" "), class: "curve" }));
    for (const point of limited) chart.append(draw("circle", { cx: x(point.A_F), cy: y(point.A_M), r: 4, class: "dot" }));
    const free = curve.points.find((point) => point.radius === null);
    if (free) chart.append(draw("path", { d: `M${x(free.A_F) - 6},${y(free.A_M) - 6}l12,12m0,-12l-12,12`, class: "free" }));
    for (const one of curve.paper) {
      const mark = draw("path", { d: `M${x(one.A_F)},${y(one.A_M) - 7}l7,7l-7,7l-7,-7z`, class: "published" });
      mark.append(draw("title", {}, `the paper, ${one.where}: ${one.A_M} / ${one.A_F}`));
      chart.append(mark);
    }
  }

  function drawPoint(point) {
    const across = point.A_F_se || 0, along = point.A_M_se || 0;
    chart.append(
      draw("line", { x1: x(point.A_F - across), x2: x(point.A_F + across), y1: y(point.A_M), y2: y(point.A_M), class: "whisker" }),
      draw("line", { x1: x(point.A_F), x2: x(point.A_F), y1: y(point.A_M - along), y2: y(point.A_M + along), class: "whisker" }),
      draw("circle", { cx: x(point.A_F), cy: y(point.A_M), r: 8, class: "point", id: "radius-point" }),
    );
  }

  function fillTable(table, headings, lines) {
    const head = make("tr", {}, ...headings.map((heading) => make("th", { scope: "col" }, heading)));
    const body = lines.map((line) => make("tr", {}, ...line.map((cell) => make("td", {}, cell))));
    table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  }

  function show() {
    const curve = settle(), point = curve.points[state.place];
    fillForm();
    slider.max = String(curve.points.length - 1);
    slider.value = String(state.place);
    slider.setAttribute("aria-valuetext", `radius ${sayRadius(point)}`);
    told.textContent = `radius δ: ${sayRadius(point)}`;
    chart.replaceChildren(draw("title", {}, "Accuracy on modified facts against accuracy on the others"));
    drawAxes();
    drawCurve(curve);
    drawPoint(point);
    const seeds = point.rows.length;
    fillTable(numbers, [`percent, mean of ${seeds} run${seeds > 1 ? "s" : ""} (standard error)`, "before the edit", `radius ${sayRadius(point)}`], Object.entries(HEADINGS).map(
      ([name, heading]) => [heading, name === "A_F" ? curve.before.toFixed(2) : "", sayValue(point[name], point[`${name}_se`])],
    ));
    fillTable(rows, ["row (key)", "seed", "A_M", "A_F\\S", "mean"], point.rows.map(([key, seed, ...values]) => [make("code", {}, key), String(seed), ...values.map((value) => value.toFixed(2))]));
    source.replaceChildren("Rows of ", make("a", { href: curve.file }, curve.file), ", found by their keys.");
    paper.replaceChildren(make("h3", {}, "In the paper"));
    if (curve.paper.length) {
      const table = make("table", {});
      fillTable(table, ["where", "of", "radius", "A_M", "A_F\\S", "mean"], curve.paper.map((one) => [one.where, one.of, one.radius, one.A_M.toFixed(2), one.A_F.toFixed(2), one.mean.toFixed(2)]));
      paper.append(make("p", {}, "The same start, batches, place of the block and number of facts; another model and sample, so what compares is the pattern. Diamonds in the picture."), make("div", { class: "wide" }, table));
    } else {
      paper.append(make("p", {}, "It prints no value for this curve."));
    }
    writeAddress(curve);
  }

  slider.addEventListener("input", () => { state.place = Number(slider.value); show(); });
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  const key = make("p", { class: "key" }, "Dots: radii of the curve. Cross: no constraint. Dashed: A_F\\S before the edit. Diamonds: the paper.");
  root.replaceChildren(
    form, make("div", { class: "dial" }, make("label", { for: "radius-slider" }, "tighter"), slider, make("span", {}, "looser"), told),
    chart, key, make("div", { class: "wide" }, numbers), make("h3", {}, "The rows behind the point"), make("div", { class: "wide" }, rows), source, paper,
  );
  readAddress();
  show();
})();
