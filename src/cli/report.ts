/** `softcvm report show`: an attestation report for people to read. Nothing is verified. */
import {
  type AttestationReport,
  DerError,
  describeReport,
  EvidenceError,
  type PrintedCertificate,
  parseReport,
  reportFromHex,
} from '../attest/index.ts';
import { readInput } from './files.ts';
import { runEvidence } from './run-evidence.ts';
import { InputError } from './size.ts';

export interface ReportFile {
  readonly report: AttestationReport;
  /** Those that stand beside it. */
  readonly certificates: readonly PrintedCertificate[];
}

/** The report in a file: binary (a response of the firmware around it, too), hex, or what `softcvm run` printed. Throws InputError. */
export function readReport(path: string): ReportFile {
  const file = readInput(path, 'report');
  const name = `report ${path}`;
  const evidence = runEvidence(file, name);
  if (evidence !== undefined && evidence.report === undefined)
    throw new InputError(`${name}: got a run without a report, want one whose guest asked for it`);
  const bytes = evidence?.report ?? reportFromHex(file.toString('latin1')) ?? file;
  return { report: asInput(() => parseReport(bytes, name)), certificates: evidence?.certificates ?? [] };
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
  const lines = describeReport(readReport(path).report);
  if (options.json) {
    console.log(
      JSON.stringify(Object.fromEntries(lines.map(([field, text]) => [field.replaceAll(' ', '_'), text]))),
    );
    return;
  }
  const width = Math.max(...lines.map(([field]) => field.length));
  for (const [field, text] of lines) console.log(`${field.padEnd(width)}  ${text}`);
}
