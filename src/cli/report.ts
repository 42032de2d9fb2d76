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
  return asInput(() => parseReport(reportBytes(path)));
}

/** The file's bytes, without hex. */
export function reportBytes(path: string): Uint8Array {
  const bytes = readInput(path, 'report');
  return reportFromHex(bytes.toString('latin1')) ?? bytes;
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
