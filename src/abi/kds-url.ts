/** URLs of AMD's key distribution server (AMD 57230, VCEK certificate and KDS interface), below `https://kdsintf.amd.com` or another base. */
import { toHex } from '../base/hex.ts';
import { generationOf, hwidBytes, type Product } from './amd-certificate.ts';
import { decodeTcb, type TcbComponent, tcbComponents } from './tcb-version.ts';

/** Query parameters, in AMD's order. */
export const SPL_PARAMETER: Readonly<Record<TcbComponent, string>> = {
  fmc: 'fmcSPL',
  bootLoader: 'blSPL',
  tee: 'teeSPL',
  snp: 'snpSPL',
  microcode: 'ucodeSPL',
};

export const chainPath = (endpoint: 'vcek' | 'vlek', product: Product): string =>
  `/${endpoint}/v1/${product}/cert_chain`;
export const crlPath = (endpoint: 'vcek' | 'vlek', product: Product): string =>
  `/${endpoint}/v1/${product}/crl`;

/** `chipId` as in a report; from Turin on its first eight bytes count. */
export function vcekPath(product: Product, chipId: Uint8Array, tcb: bigint): string {
  const hwid = toHex(chipId.subarray(0, hwidBytes(product)));
  return `/vcek/v1/${product}/${hwid}?${levels(product, tcb)}`;
}

export const vlekPath = (product: Product, tcb: bigint): string =>
  `/vlek/v1/${product}/cert?${levels(product, tcb)}`;

function levels(product: Product, version: bigint): string {
  const generation = generationOf(product);
  const tcb = decodeTcb(generation, version);
  return tcbComponents(generation)
    .map((component) => `${SPL_PARAMETER[component]}=${String(tcb[component]).padStart(2, '0')}`)
    .join('&');
}
