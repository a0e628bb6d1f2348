// Opens a page in Chromium, light and dark, wide and narrow, and prints as JSON what axe finds.
//
//   node axe_check.mjs CHROMIUM PAGE [PICTURES_FOLDER]
//
// axe-core and puppeteer-core are looked for in the folder that NODE_MODULES names. Everything that
// opens and closes is opened first, and no request leaves the machine.
import { createRequire } from "node:module";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [chromium, page, pictures] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(process.env.NODE_MODULES), "of.cjs"));
const puppeteer = require("puppeteer-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8");

// Runs in the page: what axe does not look at.
function measure() {
  const unreachable = [...document.querySelectorAll("main *")].filter((element) => {
    const style = getComputedStyle(element);
    const scrolls = ["auto", "scroll"].includes(style.overflowX);
    return scrolls && element.scrollWidth > element.clientWidth && element.tabIndex < 0;
  });
  const root = document.documentElement;
  return {
    sideways: root.scrollWidth - root.clientWidth,
    unreachable: unreachable.map((element) => element.outerHTML.slice(0, 80)),
  };
}

// Walks through the page with the key Tab: names of all stops, and those without visible focus.
async function walk(tab) {
  const stops = [];
  for (let i = 0; i < 500; i++) {
    await tab.keyboard.press("Tab");
    const stop = await tab.evaluate(() => {
      const element = document.activeElement;
      if (element === document.body || element === null || element.dataset.seen) return null;
      element.dataset.seen = "yes";
      const style = getComputedStyle(element);
      const words = (element.labels?.[0] ?? element).textContent.slice(0, 60);
      const name = element.getAttribute("aria-label") ?? words;
      const width = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
      return { tag: element.localName, name: name.trim(), outline: width };
    });
    if (stop === null) break;
    stops.push(stop);
  }
  return stops;
}

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "axe-check-"));
const browser = await puppeteer.launch({
  executablePath: chromium,
  userDataDir: profile,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
const found = [];
try {
  for (const scheme of ["light", "dark"]) {
    for (const width of [1280, 380]) {
      const tab = await browser.newPage();
      const requests = [];
      tab.on("request", (request) => requests.push(request.url()));
      await tab.setViewport({ width, height: 900 });
      await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await tab.goto(pathToFileURL(page).href, { waitUntil: "load" });
      if (pictures) {
        const file = path.join(pictures, `${scheme}-${width}.png`);
        await tab.screenshot({ path: file, fullPage: true });
      }
      await tab.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
      const stops = await walk(tab);
      const measured = await tab.evaluate(measure);
      await tab.evaluate(axe);
      const result = await tab.evaluate(() => axe.run({ resultTypes: ["violations", "incomplete"] }));
      const brief = (rules) => rules.map((rule) => ({
        rule: rule.id, impact: rule.impact, help: rule.help, nodes: rule.nodes.length,
        tags: [...new Set(rule.nodes.map((node) => node.html.match(/^<(\w+)/)[1]))],
        first: rule.nodes[0].html.slice(0, 160), why: rule.nodes[0].failureSummary,
      }));
      found.push({
        scheme, width, ...measured, stops,
        violations: brief(result.violations), incomplete: brief(result.incomplete),
        passes: result.passes.length, others: requests.slice(1),
      });
      await tab.close();
    }
  }
} finally {
  await browser.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify({ axe: axe.match(/axe v([\d.]+)/)?.[1], found }));
