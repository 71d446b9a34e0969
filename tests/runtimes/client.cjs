// One client under node: client.cjs onnxruntime-node|onnxruntime-web FOLDER OUT; a line of JSON for each file.
const fs = require("fs");
const path = require("path");
const answer = require("./answer.js");

const [name, folder, out] = process.argv.slice(2);
const ort = require(require.resolve(name, { paths: [process.cwd()] }));

async function main() {
  const entries = JSON.parse(fs.readFileSync(path.join(folder, "files.json"), "utf8"));
  const lines = fs.openSync(out, "w");
  for (const entry of entries) {
    const bytes = new Uint8Array(fs.readFileSync(path.join(folder, entry.file)));
    fs.writeSync(lines, JSON.stringify(await answer(ort, entry, bytes)) + "\n");
  }
}

main().then(() => process.exit(0));
