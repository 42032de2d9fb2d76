/** Runs a snippet program on this machine's own CPU. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { SnippetProgram } from './snippet-program.ts';

/** Why the host cannot be asked, or undefined if it can. */
export function hostUnfit(): string | undefined {
  if (process.platform === 'linux' && process.arch === 'x64') return undefined;
  return `the oracle needs x86-64 Linux; this is ${process.arch} ${process.platform}`;
}

/** Whose CPU this is, as far as it matters. */
export function hostVendor(): 'AMD' | 'other' {
  return readFileSync('/proc/cpuinfo', 'utf8').includes('AuthenticAMD') ? 'AMD' : 'other';
}

/** Whether it is of the generation that our core is one of (family 25, models below 0x10 and 0x20 to 0x5f): approximations differ. */
export function hostIsZen3(): boolean {
  const text = readFileSync('/proc/cpuinfo', 'utf8');
  const number = (name: string) => Number(new RegExp(`^${name}\\s*: (\\d+)$`, 'm').exec(text)?.[1]);
  const model = number('model');
  return (
    hostVendor() === 'AMD' && number('cpu family') === 25 && (model < 0x10 || (model >= 0x20 && model < 0x60))
  );
}

/** What the program wrote. */
export function runOnHost(program: SnippetProgram): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), 'softcvm-oracle-'));
  try {
    const path = join(folder, 'snippets');
    writeFileSync(path, program.elf);
    chmodSync(path, 0o755);
    return execFileSync(path, { maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'inherit'] });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
