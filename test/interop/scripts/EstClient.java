import java.io.FileInputStream;
import java.io.FileWriter;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.util.HashSet;
import java.util.Set;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.X509TrustManager;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.openssl.jcajce.JcaPEMWriter;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

/** Enrols with a password, renews with the certificate and has a key made, by Bouncy Castle's EST client. */
public class EstClient {
    static X509TrustManager[] trust;

    public static void main(String[] a) throws Exception {
        String server = a[0], label = a[1], anchors = a[2], device = a[3], user = a[4], password = a[5];
        Security.addProvider(new BouncyCastleProvider());
        Set<TrustAnchor> set = new HashSet<>();
        try (FileInputStream in = new FileInputStream(anchors)) {
            for (Object c : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                set.add(new TrustAnchor((X509Certificate) c, null));
            }
        }
        trust = JcaJceUtils.getCertPathTrustManager(set, null);
        ESTService est = service(server, label, null);

        X509CertificateHolder[] cas = ESTService.storeToArray(est.getCACerts().getCertificateStore());
        write("cacerts.pem", (Object[]) cas);
        System.out.println("cacerts: " + cas.length + " certificates");
        CSRRequestResponse attrs = est.getCSRAttributes();
        System.out.println("csrattrs: " + (attrs.hasAttributesResponse() ? "present" : "none"));

        KeyPairGenerator g = KeyPairGenerator.getInstance("EC");
        g.initialize(new ECGenParameterSpec("secp256r1"));
        KeyPair key = g.generateKeyPair();
        ESTAuth auth = new JcaHttpAuthBuilder(null, user, password.toCharArray()).build();
        X509CertificateHolder cert = one(est.simpleEnroll(false, csr("CN=" + device, key), auth));
        write("device.pem", cert);
        check(cert, key);
        System.out.println("simpleenroll: " + cert.getSubject());

        KeyPair next = g.generateKeyPair();
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setKeyEntry("device", key.getPrivate(), "x".toCharArray(),
            new X509Certificate[] {new JcaX509CertificateConverter().getCertificate(cert)});
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(store, "x".toCharArray());
        ESTService mutual = service(server, label, keys);
        X509CertificateHolder renewed = one(mutual.simpleEnroll(true, csr(cert.getSubject(), next), null));
        write("renewed.pem", renewed);
        check(renewed, next);
        System.out.println("simplereenroll: a new key, the same " + renewed.getSubject());

        EnrollmentResponse made = est.simpleEnrollWithServersideCreation(csr("CN=" + device + "-made", key), auth);
        System.out.println("serverkeygen: " + made.getPrivateKeyInfo().getPrivateKeyAlgorithm().getAlgorithm());

        try {
            est.simpleEnroll(false, csr("CN=" + device, key), new JcaHttpAuthBuilder(null, user, "wrong".toCharArray()).build());
            throw new Exception("a wrong password was accepted");
        } catch (ESTException e) {
            System.out.println("a wrong password: " + e.getStatusCode());
        }
    }

    static ESTService service(String server, String label, KeyManagerFactory keys) throws Exception {
        JsseESTServiceBuilder b = new JsseESTServiceBuilder(server, trust);
        b.withLabel(label);
        if (keys != null) {
            b.withKeyManagers(keys.getKeyManagers());
        }
        return b.withTimeout(20000).build();
    }

    static X509CertificateHolder one(EnrollmentResponse r) throws Exception {
        if (!r.isCompleted()) {
            throw new Exception("the enrolment waits");
        }
        X509CertificateHolder[] c = ESTService.storeToArray(r.getStore());
        if (c.length != 1) {
            throw new Exception(c.length + " certificates");
        }
        return c[0];
    }

    static PKCS10CertificationRequest csr(Object name, KeyPair key) throws Exception {
        X500Name n = name instanceof X500Name ? (X500Name) name : new X500Name((String) name);
        return new JcaPKCS10CertificationRequestBuilder(n, key.getPublic())
            .build(new JcaContentSignerBuilder("SHA256withECDSA").build(key.getPrivate()));
    }

    static void check(X509CertificateHolder cert, KeyPair key) throws Exception {
        if (!java.util.Arrays.equals(cert.getSubjectPublicKeyInfo().getEncoded(), key.getPublic().getEncoded())) {
            throw new Exception("the certificate is not for our key");
        }
    }

    static void write(String file, Object... what) throws Exception {
        try (JcaPEMWriter w = new JcaPEMWriter(new FileWriter(file))) {
            for (Object o : what) {
                w.writeObject(o);
            }
        }
    }
}
