// One client under node: client.cjs onnxruntime-node|onnxruntime-web FOLDER OUT; a line of JSON for each file.
const fs = require("fs");
const path = require("path");

const [name, folder, out] = process.argv.slice(2);
const ort = require(require.resolve(name, { paths: [process.cwd()] }));
const ARRAYS = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array };

async function main() {
  const entries = JSON.parse(fs.readFileSync(path.join(folder, "files.json"), "utf8"));
  const lines = fs.openSync(out, "w");
  for (const entry of entries) {
    const line = { file: entry.file };
    try {
      const data = new Uint8Array(fs.readFileSync(path.join(folder, entry.file)));
      const session = await ort.InferenceSession.create(data, { logSeverityLevel: 4 });
      const feed = {};
      for (const { name, dtype, shape, data } of entry.inputs) {
        const values = ARRAYS[dtype].from(dtype === "int64" ? data.map(BigInt) : data);
        feed[name] = new ort.Tensor(dtype, values, shape);
      }
      const found = await session.run(feed);
      line.outputs = {};
      for (const [key, tensor] of Object.entries(found)) {
        line.outputs[key] = { dtype: tensor.type, shape: Array.from(tensor.dims), data: Array.from(tensor.data, Number) };
      }
    } catch (err) {
      line.error = String(err.message || err).replace(/\s+/g, " ").slice(0, 2000);
    }
    fs.writeSync(lines, JSON.stringify(line) + "\n");
  }
}

main().then(() => process.exit(0));
