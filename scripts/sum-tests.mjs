// Sums up vitest's JSON reports: sum-tests.mjs STEPS_FAILED REPORT... Prints the closing line of .ci/run; exits 1 if anything failed.
import { existsSync, readFileSync } from 'node:fs';

const [stepsFailed, ...reports] = process.argv.slice(2);
let passed = 0;
let failed = 0;
let skipped = 0;
for (const path of reports) {
  if (!existsSync(path)) {
    failed++;
    continue;
  }
  const report = JSON.parse(readFileSync(path, 'utf8'));
  passed += report.numPassedTests;
  failed += report.numFailedTests;
  skipped += report.numPendingTests + report.numTodoTests;
  // A file that could not even be loaded has no tests to count.
  failed += report.testResults.filter(
    (file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'),
  ).length;
}
// A step without tests of its own (install, check) that failed.
if (failed === 0 && Number(stepsFailed) > 0) failed = Number(stepsFailed);
console.log(`\n${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exit(failed > 0 ? 1 : 0);
