// What the page does in the browser: language, light or dark, the heat-map slider, paste and drop anywhere, reports and
// tables saved without the server. Listeners sit on the document, because Gradio draws and redraws everything below.
(() => {
  const closest = (event, selector) => event.target.closest?.(selector);

  // Files for the tab in view go through the upload field that is already there
  const give = (files) => {
    const field = [...document.querySelectorAll('.drop input[type="file"]')].find((input) => input.closest(".drop").offsetParent);
    if (!field || !files.length) return false;
    const kept = new DataTransfer();
    for (const file of field.multiple ? files : [files[0]]) kept.items.add(file);
    field.files = kept.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length && give([...event.clipboardData.files])) event.preventDefault();
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (closest(event, ".drop")) return; // Gradio's own
    event.preventDefault();
    give([...event.dataTransfer.files]);
  });

  document.addEventListener("change", (event) => {
    if (!closest(event, "[data-language]")) return;
    const address = new URL(location.href);
    address.searchParams.set("lang", event.target.value);
    location.assign(address);
  });

  document.addEventListener("input", (event) => {
    if (closest(event, "[data-heat]")) event.target.closest(".view").style.setProperty("--heat", event.target.value / 100);
  });

  const save = (name, type, content) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };

  // A page that stands alone: the answer as shown, what the visitor typed, and the time
  const STYLE = `@page { size: A4; margin: 14mm } body { font: 11pt/1.4 system-ui, sans-serif; color: #111; max-width: 180mm; margin: auto }
    h1 { font-size: 14pt } h2 { font-size: 18pt; margin: 0 } h3 { font-size: 11pt; margin: 8pt 0 2pt } p, ul { margin: 2pt 0 }
    .fine { color: #444; font-size: 9pt; overflow-wrap: anywhere } .layers { display: flex; gap: 4mm } .layers img { width: 85mm; height: 85mm; object-fit: contain; background: #000 }
    .legend { display: flex; gap: 3mm; align-items: center; font-size: 9pt } .legend img { width: 40mm; height: 3mm } dt { font-weight: bold } dd { margin: 0 0 4pt }`;
  const report = (answer, fields) => {
    const copy = answer.cloneNode(true);
    copy.querySelectorAll("[data-report], .meter, figcaption label").forEach((part) => part.remove());
    const typed = document.createElement("dl");
    for (const [name, value] of fields) {
      if (!value) continue;
      typed.append(Object.assign(document.createElement("dt"), { textContent: name }));
      typed.append(Object.assign(document.createElement("dd"), { textContent: value }));
    }
    const { lang, dir } = document.documentElement;
    const title = answer.querySelector("[data-report]").dataset.title;
    return `<!doctype html><html lang="${lang}" dir="${dir}"><head><meta charset="utf-8"><title>${title}</title><style>${STYLE}</style></head>` +
      `<body><h1>${title}</h1>${typed.outerHTML}${copy.outerHTML}</body></html>`;
  };

  // Records of the table's rows as comma-separated values, RFC 4180. A cell that a spreadsheet would run gets a quote before it.
  const csv = (rows) => {
    const records = rows.map((row) => JSON.parse(row.dataset.record));
    const cell = (value) => {
      const text = String(Array.isArray(value) ? value.join(" ") : (value ?? ""));
      return `"${(typeof value !== "number" && /^[=+\-@\t\r]/.test(text) ? "'" + text : text).replaceAll('"', '""')}"`;
    };
    const lines = records.map((record) => Object.values(record).map(cell).join(","));
    return "\ufeff" + [Object.keys(records[0] ?? {}).join(","), ...lines].join("\r\n") + "\r\n";
  };

  const sort = (button) => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    head.parentElement.querySelectorAll("[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[button.dataset.sortBy].dataset.sort;
    const order = new Intl.Collator(document.documentElement.lang, { numeric: true }).compare;
    const numbers = [...body.rows].every((row) => key(row) !== "" && !isNaN(key(row)));
    const compare = (a, b) => (numbers ? key(a) - key(b) : order(key(a), key(b)));
    body.append(...[...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a))));
  };

  // On a phone the answer is drawn below the questions: bring it into view when it arrives
  // and let a screen reader say it
  new MutationObserver((changes) => {
    const answer = document.querySelector("#answer [data-answer]");
    document.getElementById("answer")?.setAttribute("aria-live", "polite");
    // Gradio puts a button into the button that adds files, and the outer one, which the keyboard reaches, does nothing
    for (const inner of document.querySelectorAll(".icon-button .upload-container")) inner.inert = true;
    const arrived = changes.some((change) => change.target.closest?.("#answer"));
    if (answer && arrived && answer.getBoundingClientRect().top > innerHeight * 0.8) answer.scrollIntoView();
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("click", (event) => {
    const sorter = closest(event, "[data-sort-by]");
    if (sorter) sort(sorter);
    if (closest(event, "[data-save-table]")) {
      const table = event.target.closest(".bar").parentElement.querySelector("[data-table]");
      save("findings.csv", "text/csv;charset=utf-8", csv([...table.tBodies[0].rows]));
    }
    if (event.target.type !== "file") closest(event, ".icon-button:has(.upload-container)")?.querySelector("input").click();
    if (closest(event, "[data-copy]")) navigator.clipboard.writeText(event.target.closest(".snippet").querySelector("code").textContent);
    if (closest(event, "[data-theme-switch]")) {
      document.body.classList.toggle("dark");
      return;
    }
    if (closest(event, "[data-save-report]")) {
      const answer = event.target.closest("[data-answer]");
      const box = answer.querySelector("[data-report]");
      const named = (input) => [input.closest("label").firstChild.textContent.trim(), input.value.trim()];
      const now = new Date();
      const fields = [[box.dataset.date, now.toLocaleString(document.documentElement.lang)], ...[...box.querySelectorAll("input")].map(named)];
      save(`report-${now.toISOString().slice(0, 16).replace(":", "")}.html`, "text/html", report(answer, fields));
    }
  });
})();
