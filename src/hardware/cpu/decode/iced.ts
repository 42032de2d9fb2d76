/** iced-x86, loaded when the first instruction is decoded: it costs more than an empty Node's start. */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';

let loaded: typeof Iced | undefined;

export function iced(): typeof Iced {
  loaded ??= createRequire(import.meta.url)('iced-x86') as typeof Iced;
  return loaded;
}

export type { Decoder, Instruction } from 'iced-x86';
