// A click on a point of a score plot shows its case. Without this script a point is a link to the case's rows.
"use strict";
document.documentElement.classList.add("scripted");

for (const section of document.querySelectorAll("section.dataset")) {
  const points = [...section.querySelectorAll("a.point")];
  const rows = [...section.querySelectorAll("tbody[id]")];
  const panel = section.querySelector(".case");
  if (!points.length || !rows.length || !panel) continue;
  const caseOf = (point) => point.getAttribute("href").slice(1);
  const place = (point) => {
    const box = point.firstElementChild.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  let origin = null;

  const button = (text, label, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  };

  const close = () => {
    panel.hidden = true;
    panel.replaceChildren();
    for (const point of points) point.classList.remove("chosen");
    if (origin) origin.focus({ preventScroll: true });
  };

  // Fill the panel with copies of what the page holds of the case: its rows of every table, and its pictures.
  const show = (id) => {
    const index = rows.findIndex((row) => row.id === id);
    if (index < 0) return false;
    const bar = document.createElement("div");
    bar.className = "bar";
    const title = document.createElement("h4");
    title.textContent = rows[index].dataset.case;
    const step = (by, place) => () => {
      show(rows[(index + by + rows.length) % rows.length].id);
      panel.querySelectorAll("button")[place].focus(); // the one that was pressed is replaced
    };
    bar.append(title, button("Previous", "Previous case", step(-1, 0)), button("Next", "Next case", step(1, 1)));
    bar.append(button("Close", "Close the case", close));
    const tables = document.createElement("div");
    tables.className = "tables";
    for (const body of section.querySelectorAll("tbody[data-of]")) {
      if (body.dataset.of !== id) continue;
      const table = document.createElement("table");
      const copy = body.cloneNode(true);
      copy.removeAttribute("id");
      copy.removeAttribute("data-of");
      const whole = body.parentElement;
      table.append(whole.caption.cloneNode(true), whole.tHead.cloneNode(true), copy);
      const scroll = document.createElement("div");
      scroll.className = "scroll";
      scroll.tabIndex = 0;
      scroll.append(table);
      tables.append(scroll);
    }
    const figure = [...section.querySelectorAll("figure[data-of]")].find((found) => found.dataset.of === id);
    const picture = figure ? figure.cloneNode(true) : document.createElement("p");
    picture.removeAttribute("data-of");
    if (!figure) {
      picture.className = "note";
      picture.textContent = "The page holds no picture of this case.";
    }
    panel.replaceChildren(bar, picture, tables);
    panel.hidden = false;
    for (const point of points) point.classList.toggle("chosen", caseOf(point) === id);
    return true;
  };

  const open = (point, byKeyboard) => {
    origin = point;
    for (const other of point.closest(".plot").querySelectorAll("a.point")) other.tabIndex = -1;
    point.tabIndex = 0;
    show(caseOf(point));
    if (byKeyboard) panel.focus();
    panel.scrollIntoView({ block: "nearest" });
  };

  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });

  for (const plot of section.querySelectorAll(".plot")) {
    const own = [...plot.querySelectorAll("a.point")];
    if (!own.length) continue;
    own[0].tabIndex = 0; // one stop of the Tab key; the arrow keys move between points
    const move = (from, to) => {
      from.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    };
    plot.addEventListener("keydown", (event) => {
      const from = event.target.closest("a.point");
      if (!from) return;
      const row = own.filter((point) => point.parentElement === from.parentElement);
      row.sort((a, b) => place(a)[0] - place(b)[0]);
      const at = row.indexOf(from);
      const lanes = [...new Set(own.map((point) => point.parentElement))];
      const beside = (by) => {
        const lane = lanes[lanes.indexOf(from.parentElement) + by];
        return own.find((point) => point.parentElement === lane && caseOf(point) === caseOf(from));
      };
      const to = {
        ArrowLeft: row[at - 1],
        ArrowRight: row[at + 1],
        Home: row[0],
        End: row[row.length - 1],
        ArrowUp: beside(-1),
        ArrowDown: beside(1),
      }[event.key];
      if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) event.preventDefault();
      if (to) move(from, to);
      if (event.key === "Escape") close();
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open(from, true);
      }
    });
    plot.addEventListener("click", (event) => {
      event.preventDefault();
      const distance = (point) => Math.hypot(place(point)[0] - event.clientX, place(point)[1] - event.clientY);
      const nearest = own.reduce((best, point) => (distance(point) < distance(best) ? point : best));
      if (distance(nearest) <= 24) open(nearest, false);
    });
  }

  if (show(location.hash.slice(1))) panel.scrollIntoView({ block: "nearest" });
}

// A printed page shows what a reader of the screen can open: the claims, too.
const closed = new Set();
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details.printed:not([open])")) {
    closed.add(part);
    part.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
  closed.clear();
});
