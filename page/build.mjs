// Bundles src/ into one HTML file without references to others: morendo/view/page.html.
// The digest of the sources stands in it, so that a test can tell whether it is up to date.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const here = new URL(".", import.meta.url);
const read = (name) => readFileSync(new URL(name, here), "utf8");
const sources = [
  "build.mjs",
  "package.json",
  "package-lock.json",
  ...readdirSync(new URL("src/", here)).map((name) => `src/${name}`),
].sort();

function digest() {
  const hash = createHash("sha256");
  for (const name of sources) hash.update(`${name}\n${read(name)}\n`);
  return hash.digest("hex");
}

const { outputFiles } = await build({
  entryPoints: [new URL("src/main.js", here).pathname],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  legalComments: "inline",
  write: false,
  outdir: "out",
});
const text = (end) => outputFiles.find((file) => file.path.endsWith(end)).text;
// A function as replacement: "$&" in minified code is no pattern. A closing tag would end the script.
const page = read("src/page.html")
  .replace("/*DIGEST*/", () => digest())
  .replace("/*STYLE*/", () => text(".css"))
  .replace("/*SCRIPT*/", () => text(".js").replaceAll("</script", "<\\/script"));
writeFileSync(new URL("../morendo/view/page.html", here), page);
console.log(`morendo/view/page.html: ${Math.round(page.length / 1000)} kB`);
