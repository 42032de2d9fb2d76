/** What the authority has to know of a chip to certify its keys, as it knows it from manufacturing. */
import type { Product } from '../abi/amd-certificate.ts';
import type { Chip } from '../hardware/chip.ts';

export interface EndorsedChip {
  readonly product: Product;
  /** In the certificate: Milan-B1. */
  readonly productName: string;
  /** 64 bytes; 8 for Turin. */
  readonly hwid: Uint8Array;
  /** SubjectPublicKeyInfo of the chip's VCEK for that TCB_VERSION. */
  vcekSpki(tcb: bigint): Uint8Array;
}

export const endorsedChip = (chip: Chip): EndorsedChip => ({
  product: chip.personality.product,
  productName: chip.personality.productName,
  hwid: chip.fuses.id,
  vcekSpki: (tcb) => chip.vcek(tcb).spki,
});
