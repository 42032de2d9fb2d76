/** `softcvm report show`: an attestation report for people to read. Nothing is verified. */
import {
  type AttestationReport,
  DerError,
  describeReport,
  EvidenceError,
  parseReport,
  reportFromHex,
} from '../attest/index.ts';
import { readInput } from './files.ts';
import { InputError } from './size.ts';

/** The report in a file, which may be binary (a response of the firmware around it, too) or hex. Throws InputError. */
export function readReport(path: string): AttestationReport {
  const file = readInput(path, 'report');
  const bytes = reportFromHex(file.toString('latin1')) ?? file;
  return asInput(() => parseReport(bytes, `report ${path}`));
}

/** Evidence that cannot be read is the user's to mend. */
export function asInput<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof EvidenceError || error instanceof DerError || error instanceof RangeError) {
      throw new InputError(error.message);
    }
    throw error;
  }
}

export function showReport(path: string, options: { readonly json?: boolean }): void {
  const lines = describeReport(readReport(path));
  if (options.json) {
    console.log(
      JSON.stringify(Object.fromEntries(lines.map(([field, text]) => [field.replaceAll(' ', '_'), text]))),
    );
    return;
  }
  const width = Math.max(...lines.map(([field]) => field.length));
  for (const [field, text] of lines) console.log(`${field.padEnd(width)}  ${text}`);
}
