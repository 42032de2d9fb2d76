/** The forms in which mnemonics are encoded: what iced's table of instructions knows of their operands. */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
const { Code, Instruction, Mnemonic, OpCodeOperandKind } = iced;

/** Forms with results that the manual leaves open in some cases. Ours are AMD's. */
const AMD_ONLY = /^Bswap_r16|^Sh[lr]d_rm16|^Bs[fr]_r|^Cmpxchg_rm32/;
/** Forms whose results each generation of a vendor's processors has its own of. Ours are Zen 3's. */
export const ZEN3_ONLY = /^Rcp[ps]s_|^Rsqrt[ps]s_/;

export interface Form {
  readonly code: Iced.Code;
  readonly operands: readonly string[];
  readonly name: string;
}

/** Every form of the mnemonics that exists in 64-bit mode and has legacy encoding, or VEX for general registers alone; for another vendor than AMD, those that all agree on. */
export function formsOf(mnemonics: readonly string[], vendor = 'AMD'): Form[] {
  const wanted = new Set(mnemonics.map((name) => (Mnemonic as unknown as Record<string, number>)[name]));
  const forms: Form[] = [];
  for (const [name, code] of Object.entries(Code)) {
    if (typeof code !== 'number') continue;
    const probe = new Instruction();
    probe.code = code;
    const info = probe.opCode;
    if (vendor !== 'AMD' && AMD_ONLY.test(name)) continue;
    const operands = Array.from({ length: info.opCount }, (_, k) => OpCodeOperandKind[info.opKind(k)]!);
    const { Legacy, VEX } = iced.EncodingKind;
    const encoded =
      info.encoding === Legacy || (info.encoding === VEX && operands.every((kind) => /^(r|imm)/.test(kind)));
    if (wanted.has(info.mnemonic) && info.mode64 && encoded) {
      if (!operands.some((kind) => /^(mm_|br|far|seg_reg|cr_|dr_|[ecsdfg]s$)/.test(kind)))
        forms.push({ code, operands, name });
    }
    info.free();
    probe.free();
  }
  return forms;
}
