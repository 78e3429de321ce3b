// Runs the scripts beside it in one process, as many at a time as the caller asks for: loading Microsoft's SDKs takes
// longer than most scripts. Each line of standard input is {"id", "script", "with"}, where script is "file" or
// "file.function"; each line of standard output is {"id", "value"} or {"id", "error"}. It changes nothing in the SDKs.
'use strict';
const path = require('path');
const readline = require('readline');

const open = new Set();
const say = (o) => process.stdout.write(JSON.stringify(o) + '\n');

// What an application would see and log of an error.
function seen(e) {
  const response = e.response || e.innerError?.response || {};
  let body = e.responseBody ?? e.result ?? e.innerError?.responseBody;
  if (typeof body === 'object') body = JSON.stringify(body);
  return {name: e.name, message: e.message, status: response.statusCode, body, stack: e.stack};
}

// An SDK that throws where nobody can catch it is a failure of what runs just then.
process.on('uncaughtException', (e) => {
  for (const id of open) say({id, error: {...seen(e), message: 'uncaught: ' + e.message}});
  open.clear();
});

readline.createInterface({input: process.stdin}).on('line', async (line) => {
  const {id, script, with: given} = JSON.parse(line);
  open.add(id);
  let answer;
  try {
    const [file, name] = script.split('.');
    const exported = require(path.join(__dirname, 'scripts', file));
    answer = {value: await (name ? exported[name] : exported)(given) ?? null};
  } catch (e) {
    answer = {error: seen(e)};
  }
  if (open.delete(id)) say({id, ...answer});
});
