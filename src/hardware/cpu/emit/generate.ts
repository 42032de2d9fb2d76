/** Writes the interpreter's module as a TypeScript file, at build time (scripts/generate.mjs): emitting takes longer than loading. */
import { writeFileSync } from 'node:fs';
import { emitInterpreter } from './interpreter-module.ts';

export function generate(path: string): void {
  const { bytes, handlers } = emitInterpreter();
  const base64 = Buffer.from(bytes).toString('base64');
  writeFileSync(
    path,
    `// Written by scripts/generate.mjs from src/hardware/cpu/emit.
export const HANDLERS: readonly string[] = ${JSON.stringify(handlers)};
export const MODULE = '${base64}';
`,
  );
}
